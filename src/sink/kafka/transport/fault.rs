//! What the Kafka client says when something fails, with its code kept, and whether it may pass. Speaks of no record's content.

use std::ffi::CStr;
use std::fmt;

use rdkafka::bindings as native;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::model::Retry;

use crate::sink::SinkError;

/// An error of librdkafka or of the broker behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: Option<Code>,
    text: String,
    /// The property of the client's configuration that it is about.
    property: Option<String>,
    /// Calling again goes on where it was.
    is_retriable: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

impl From<KafkaError> for Fault {
    fn from(error: KafkaError) -> Self {
        match error {
            // Its own text shows the value, which may be a password.
            KafkaError::ClientConfig(_, reason, property, value) => Self {
                code: Some(Code::InvalidConfig),
                text: if value.len() > 3 && reason.contains(&value) {
                    "its value cannot be used".to_owned()
                } else {
                    reason
                },
                property: Some(property),
                is_retriable: false,
            },
            error => {
                Self { code: error.rdkafka_error_code(), text: error.to_string(), property: None, is_retriable: false }
            }
        }
    }
}

impl From<Code> for Fault {
    fn from(code: Code) -> Self {
        Self { code: Some(code), text: code.to_string(), property: None, is_retriable: false }
    }
}

impl Fault {
    /// Takes what a call of the transactional interface returned; null is success.
    ///
    /// # Safety
    /// `error` is null or an error object that nobody else holds.
    pub(super) unsafe fn taken(error: *mut native::rd_kafka_error_t) -> Result<(), Fault> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: the object is alive until it is destroyed at the end, and the text is copied before.
        unsafe {
            let text = CStr::from_ptr(native::rd_kafka_error_string(error)).to_string_lossy().into_owned();
            let code = Code::from(native::rd_kafka_error_code(error));
            let is_retriable = native::rd_kafka_error_is_retriable(error) != 0;
            native::rd_kafka_error_destroy(error);
            Err(Fault { code: Some(code), text, property: None, is_retriable })
        }
    }

    /// The call ran out of its time, or met a broker that is not ready, and may be made again.
    pub(super) fn is_retriable(&self) -> bool {
        self.is_retriable
    }

    /// Whether waiting may mend it. What a person must allow, correct or enlarge does not mend itself; a broker that is away,
    /// an expired producer id or another producer in our place does, since each attempt begins with a new producer.
    fn retry(&self) -> Retry {
        match self.code {
            Some(
                Code::TopicAuthorizationFailed
                | Code::GroupAuthorizationFailed
                | Code::ClusterAuthorizationFailed
                | Code::TransactionalIdAuthorizationFailed
                | Code::SaslAuthenticationFailed
                | Code::Authentication
                | Code::UnsupportedSASLMechanism
                | Code::UnsupportedVersion
                | Code::UnsupportedFeature
                | Code::MessageSizeTooLarge
                | Code::InvalidRecord
                | Code::InvalidTopic
                | Code::InvalidPartitions
                | Code::InvalidReplicationFactor
                | Code::InvalidReplicaAssignment
                | Code::InvalidConfig
                | Code::PolicyViolation
                | Code::InvalidTransactionTimeout
                | Code::InvalidArgument,
            ) => Retry::Never,
            _ => Retry::Later,
        }
    }

    /// With what was being done, and the last word of the client's connections: a mere time-out says nothing.
    pub(super) fn while_doing(self, context: impl Into<String>, connections: Option<String>) -> SinkError {
        if let Some(property) = self.property {
            return SinkError::ClientProperty { property, reason: self.text };
        }
        let retry = self.retry();
        let context = match connections {
            Some(word) => format!("{} (Kafka client: {word})", context.into()),
            None => context.into(),
        };
        SinkError::Kafka { context, source: Box::new(self), retry }
    }

    /// The same where another attempt finds other circumstances.
    pub(super) fn that_passes(self, context: String) -> SinkError {
        SinkError::Kafka { context, source: Box::new(self), retry: Retry::Later }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_a_person_can_mend_is_not_tried_again() {
        for (code, expected) in [
            (Code::BrokerTransportFailure, Retry::Later),
            (Code::NotEnoughReplicas, Retry::Later),
            (Code::UnknownTopicOrPartition, Retry::Later),
            (Code::InvalidProducerIdMapping, Retry::Later),
            (Code::Fenced, Retry::Later),
            (Code::TopicAuthorizationFailed, Retry::Never),
            (Code::Authentication, Retry::Never),
            (Code::MessageSizeTooLarge, Retry::Never),
            (Code::InvalidReplicationFactor, Retry::Never),
        ] {
            assert_eq!(Fault::from(code).retry(), expected, "{code}");
        }
    }

    #[test]
    fn a_property_that_the_client_refuses_is_named_without_its_value() {
        let secret = "HUNTER2-SECRET";
        for (property, part) in
            [("sasl.pasword", "No such configuration property"), ("acks", ""), ("sasl.jaas.config", "Java")]
        {
            let refused = rdkafka::ClientConfig::new().set(property, secret).create_native_config().err().unwrap();
            let error = Fault::from(refused).while_doing("setting up the Kafka client", None);
            let text = error.to_string();
            assert!(text.contains(&format!("refuses \"{property}\"")) && text.contains(part), "{text}");
            assert!(!text.contains(secret) && !format!("{error:?}").contains(secret), "{text}");
            assert_eq!(error.retry(), Retry::Never);
        }
    }
}
