//! tokio-postgres on top of our own transport. Opens no transport itself.

use std::future::{Ready, ready};
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::SslNegotiation;
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{AsyncMessage, Client, Config, config};

use crate::config::{ChannelBinding as WantedBinding, ServerUrl};

use super::transport::Transport;
use super::{Session, WireError};

/// A tokio-postgres client whose connection runs in a task of its own and ends with it.
#[derive(Debug)]
pub struct SqlClient {
    client: Client,
    parameters: Vec<(&'static str, String)>,
}

impl SqlClient {
    /// A parameter the server reported at the start: `server_version`, `in_hot_standby`, `default_transaction_read_only`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }
}

impl Deref for SqlClient {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl SqlClient {
    /// The client, for transactions, which need it exclusively.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

/// Hands a finished transport to tokio-postgres.
pub(super) async fn start(
    transport: Transport,
    url: &ServerUrl,
    session: &Session,
    end_point: Option<Vec<u8>>,
) -> Result<SqlClient, WireError> {
    let mut config = Config::new();
    config
        .user(&url.user)
        .dbname(&url.database)
        .application_name(&session.application_name)
        .channel_binding(match url.channel_binding {
            WantedBinding::Disable => config::ChannelBinding::Disable,
            WantedBinding::Prefer => config::ChannelBinding::Prefer,
            WantedBinding::Require => config::ChannelBinding::Require,
        })
        // The transport is finished: tokio-postgres must not negotiate TLS, only ask it for the binding.
        .ssl_mode(config::SslMode::Require)
        .ssl_negotiation(SslNegotiation::Direct);
    if let Some(password) = &url.password {
        config.password(password.reveal());
    }
    let options = super::startup::options_text(session);
    if !options.is_empty() {
        config.options(options);
    }
    let connected = config.connect_raw(transport, Finished { end_point }).await;
    let (client, mut connection) = connected.map_err(|error| match WireError::from(error) {
        WireError::Authentication(_) if url.password.is_none() => super::startup::no_password(url),
        error => error,
    })?;
    let parameters = ["server_version", "in_hot_standby", "default_transaction_read_only"]
        .into_iter()
        .filter_map(|name| connection.parameter(name).map(|value| (name, value.to_owned())))
        .collect();
    tokio::spawn(async move {
        loop {
            match std::future::poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notice(notice))) => tracing::debug!(notice = notice.message(), "the server says"),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::debug!(%error, "a SQL session ended");
                    break;
                }
                None => break,
            }
        }
    });
    Ok(SqlClient { client, parameters })
}

/// "Connects TLS" by handing the finished stream over.
struct Finished {
    end_point: Option<Vec<u8>>,
}

impl TlsConnect<Transport> for Finished {
    type Stream = FinishedStream;
    type Error = io::Error;
    type Future = Ready<io::Result<FinishedStream>>;

    fn connect(self, transport: Transport) -> Self::Future {
        ready(Ok(FinishedStream { transport, end_point: self.end_point }))
    }
}

/// The transport with what channel binding needs.
struct FinishedStream {
    transport: Transport,
    end_point: Option<Vec<u8>>,
}

impl TlsStream for FinishedStream {
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point.clone().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

impl AsyncRead for FinishedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_read(context, buffer)
    }
}

impl AsyncWrite for FinishedStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(context)
    }
}
