//! What goes wrong between us and the broker, and what is said: wrong address, wrong password, no right, a topic deleted, a record
//! of the progress gone. Nothing is made anew silently, nothing waits for ever where it could say why.

use walrelay::throwaway::{BrokerOptions, SecureListeners};

use super::harness::certificates::Authority;
use super::harness::{
    Feed, Reader, Relay, broker_with, config, fails_with, start_server, streams, value, values, waits_with,
};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text)";

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_is_named_and_waited_for() {
    let mut feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    feed.broker.stop().await;
    let relay = Relay::start(&feed.config("initial_copy = false", "")).await;
    waits_with(&relay, &[&feed.broker.address()]).await;
    feed.broker.start_again().await.unwrap();
    streams(&relay).await;
    feed.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    feed.caught_up().await;
    assert_eq!(feed.reader().read_one("shop.public.orders").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_scram_carry_the_feed_and_a_wrong_password_is_said() {
    let authority = Authority::new("test authority");
    let server = authority.issue("broker", &["localhost", "127.0.0.1"]);
    let secure = SecureListeners {
        keystore_pem: [server.key, server.certificate, authority.pem()].concat(),
        authority_pem: authority.pem(),
        user: "walrelay".to_owned(),
        password: "secret-word".to_owned(),
    };
    let feed = Feed::with(Default::default(), BrokerOptions { secure: Some(secure), ..Default::default() }).await;
    feed.on_primary(TABLES).await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ca = write("ca.pem", &authority.pem());
    let password = write("password", "secret-word\n");
    let wrong = write("wrong", "not-the-word\n");
    let configuration = |password: &str, authority: &str| {
        let sink = format!(
            "password_file = \"{password}\"\n[pipeline.sink.client]\n\"security.protocol\" = \"SASL_SSL\"\n\
             \"sasl.mechanisms\" = \"SCRAM-SHA-512\"\n\"sasl.username\" = \"walrelay\"\n\"ssl.ca.location\" = \"{authority}\""
        );
        config(&feed.primary.url("shop"), &feed.broker.scram_address(), "initial_copy = false", &sink)
    };
    let mut relay = Relay::start(&configuration(&wrong, &ca)).await;
    let said = relay.wait("feed1", "an error", |report| report["last_error"].as_str().is_some_and(|it| !it.is_empty()));
    let said = said.await["last_error"].as_str().unwrap().to_owned();
    assert!(said.to_lowercase().contains("authentication") && said.contains("password"), "{said}");
    assert!(!relay.log().contains("not-the-word"), "the password is in the log");
    relay.stop().await;
    let stranger = write("stranger.pem", &Authority::new("another authority").pem());
    relay.rewrite_config(&configuration(&password, &stranger));
    relay.start_again().await;
    let said = relay.wait("feed1", "an error", |report| report["last_error"].as_str().is_some_and(|it| !it.is_empty()));
    let said = said.await["last_error"].as_str().unwrap().to_owned();
    assert!(said.to_lowercase().contains("certificate"), "{said}");
    relay.stop().await;
    relay.rewrite_config(&configuration(&password, &ca));
    relay.start_again().await;
    streams(&relay).await;
    feed.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    feed.caught_up().await;
    assert_eq!(feed.reader().read_one("shop.public.orders").await.len(), 1);
    assert!(!relay.log().contains("secret-word"), "the password is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_without_its_record_and_a_record_of_another_cluster_are_refused() {
    let feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    let mut relay = feed.relay("").await;
    feed.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    feed.caught_up().await;
    assert!(relay.stop().await.success());
    // Another cluster with tables of the same names.
    let other = start_server(18, Default::default()).await;
    values(&other, "postgres", "CREATE DATABASE shop").await;
    values(&other, "shop", TABLES).await;
    relay.rewrite_config(&config(&other.url("shop"), &feed.broker.address(), "initial_copy = false", ""));
    relay.start_again().await;
    fails_with(&relay, &["cluster", "system identifier"]).await;
    assert_eq!(value(&other, "shop", "SELECT count(*) FROM pg_replication_slots").await, "0");
    relay.stop().await;
    feed.delete_topics(&["walrelay.progress"]).await;
    relay.rewrite_config(&feed.config("initial_copy = false", ""));
    relay.start_again().await;
    fails_with(&relay, &["walrelay_feed1", "walrelay.progress", "walrelay drop feed1"]).await;
    let records = feed.reader().read_one("shop.public.orders").await;
    assert_eq!(records.len(), 1, "events were sent again: {records:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_or_may_not_be_made_is_named() {
    let feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    let mut relay = Relay::start(&feed.config("initial_copy = false", "create_topics = false")).await;
    let said = relay.wait("feed1", "an error", |report| report["last_error"].as_str().is_some_and(|it| !it.is_empty()));
    let said = said.await["last_error"].as_str().unwrap().to_owned();
    assert!(said.contains("walrelay.progress") || said.contains("shop.public.orders"), "{said}");
    assert!(said.contains("create_topics"), "{said}");
    relay.stop().await;
    relay.rewrite_config(&feed.config("initial_copy = false", ""));
    relay.start_again().await;
    streams(&relay).await;
    feed.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    feed.caught_up().await;
    feed.delete_topics(&["shop.public.orders"]).await;
    feed.on_primary("INSERT INTO orders VALUES (2, 'y')").await;
    // Either the topic is made again for what follows, or the feed stops and names it; the event is never lost.
    let report = relay
        .wait("feed1", "an answer to the deleted topic", |report| {
            report["state"] == "failed" || report["state"] == "streaming"
        })
        .await;
    if report["state"] == "failed" {
        assert!(report["last_error"].as_str().unwrap().contains("shop.public.orders"), "{report}");
    } else {
        let records = feed.reader().read_count(&["shop.public.orders"], 1).await;
        assert_eq!(records[0].key_text(), r#"{"id":2}"#);
    }
}
