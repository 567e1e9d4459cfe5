//! What goes wrong between us and the broker, and what is said: not there, wrong password, a stranger's certificate, no right any
//! more, a topic deleted. Nothing waits for ever where it could say why, and nothing is lost once it is mended.

use serde_json::Value;
use walrelay::throwaway::{BrokerOptions, SecureListeners};

use super::harness::certificates::Authority;
use super::harness::{Acl, Feed, Relay, config, fails_with, second_broker, streams, waits_with};

const TABLES: &str = "CREATE TABLE orders (id int PRIMARY KEY, item text)";
const TOPIC: &str = "shop.public.orders";

/// The first error that is reported, whatever state it leads to.
async fn error_of(relay: &Relay) -> String {
    let is_there = |report: &Value| report["last_error"].as_str().is_some_and(|text| !text.is_empty());
    let report = relay.wait("feed1", "an error", is_there).await;
    report["last_error"].as_str().unwrap().to_owned()
}

async fn keys(feed: &Feed) -> Vec<String> {
    feed.caught_up().await;
    feed.reader().read_one(TOPIC).await.iter().map(|record| record.key_text()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_and_a_topic_that_somebody_deletes_are_named_and_mended() {
    let mut feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    feed.broker.stop().await;
    let mut relay = Relay::start(&feed.config("initial_copy = false", "create_topics = false")).await;
    waits_with(&relay, &["127.0.0.1", "Connection refused"]).await;
    feed.broker.start_again().await.unwrap();
    fails_with(&relay, &[TOPIC, "create_topics"]).await;
    relay.stop().await;
    relay.rewrite_config(&feed.config("initial_copy = false", ""));
    relay.start_again().await;
    streams(&relay).await;
    feed.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    assert_eq!(keys(&feed).await, [r#"{"id":1}"#]);
    // Its records are gone with it; what follows goes to a new one.
    feed.delete_topics(&[TOPIC]).await;
    feed.on_primary("INSERT INTO orders VALUES (2, 'y')").await;
    let log = || relay.log().contains("which somebody deleted");
    super::harness::eventually("the deleted topic is named", || async { log().then_some(()) }).await;
    streams(&relay).await;
    assert_eq!(keys(&feed).await, [r#"{"id":2}"#]);
    // Where topics are not to be made, it waits for a person, and nothing is lost.
    relay.stop().await;
    relay.rewrite_config(&feed.config("initial_copy = false", "create_topics = false"));
    relay.start_again().await;
    streams(&relay).await;
    feed.delete_topics(&[TOPIC]).await;
    feed.on_primary("INSERT INTO orders VALUES (3, 'z')").await;
    fails_with(&relay, &[TOPIC, "create_topics"]).await;
    feed.create_topic(TOPIC, 1, &[]).await;
    relay.signal(libc::SIGHUP);
    streams(&relay).await;
    assert_eq!(keys(&feed).await, [r#"{"id":3}"#]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_lose_the_record_or_show_a_secret_is_refused_with_its_remedy() {
    let feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    feed.create_topic("walrelay.progress", 1, &[("cleanup.policy", "delete")]).await;
    let mut relay = Relay::start(&feed.config("initial_copy = false", "")).await;
    fails_with(&relay, &["walrelay.progress", "cleanup.policy = delete", "--add-config cleanup.policy=compact"]).await;
    feed.set_topic("walrelay.progress", &[("cleanup.policy", "compact")]).await;
    relay.signal(libc::SIGHUP);
    streams(&relay).await;
    relay.stop().await;
    relay
        .rewrite_config(&feed.config("initial_copy = false", "[pipeline.sink.client]\n\"sasl.pasword\" = \"HUNTER2\""));
    relay.start_again().await;
    fails_with(&relay, &["refuses \"sasl.pasword\"", "No such configuration property"]).await;
    assert!(!relay.log().contains("HUNTER2"));
}

/// A topic that is there, and whose one broker is not, is not taken for missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_without_a_leader_is_waited_for() {
    let feed = Feed::start().await;
    feed.on_primary(TABLES).await;
    let mut second = second_broker(&feed.broker).await;
    feed.create_topic_on(TOPIC, 2).await;
    second.stop().await;
    let relay = Relay::start(&feed.config("initial_copy = false", "create_topics = false")).await;
    waits_with(&relay, &[TOPIC, "not every partition has a leader"]).await;
    second.start_again().await.unwrap();
    streams(&relay).await;
    feed.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    assert_eq!(keys(&feed).await, [r#"{"id":1}"#]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_scram_carry_the_feed_and_what_is_refused_is_said() {
    let authority = Authority::new("test authority");
    let server = authority.issue("broker", &["localhost", "127.0.0.1"]);
    let secure = SecureListeners {
        keystore_pem: [server.key, server.certificate, authority.pem()].concat(),
        authority_pem: authority.pem(),
        user: "walrelay".to_owned(),
        password: "secret-word".to_owned(),
    };
    let options = BrokerOptions { secure: Some(secure), ..Default::default() }
        .with("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer")
        .with("super.users", "User:ANONYMOUS")
        .with("allow.everyone.if.no.acl.found", "true");
    let feed = Feed::with(Default::default(), options).await;
    feed.on_primary(TABLES).await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ours = write("ca.pem", &authority.pem());
    let strangers = write("stranger.pem", &Authority::new("another authority").pem());
    let password = write("password", "secret-word\n");
    let wrong = write("wrong", "not-the-word\n");
    let configuration = |password: &str, authority: &str| {
        let sink = format!(
            "password_file = \"{password}\"\n[pipeline.sink.client]\n\"security.protocol\" = \"SASL_SSL\"\n\
             \"sasl.mechanisms\" = \"SCRAM-SHA-512\"\n\"sasl.username\" = \"walrelay\"\n\"ssl.ca.location\" = \"{authority}\""
        );
        config(&feed.primary.url("shop"), &feed.broker.scram_address(), "initial_copy = false", &sink)
    };
    let mut relay = Relay::start(&configuration(&wrong, &ours)).await;
    let said = error_of(&relay).await.to_lowercase();
    assert!(said.contains("authentication"), "{said}");
    relay.stop().await;
    relay.rewrite_config(&configuration(&password, &strangers));
    relay.start_again().await;
    let said = error_of(&relay).await.to_lowercase();
    assert!(said.contains("certificate"), "{said}");
    relay.stop().await;
    relay.rewrite_config(&configuration(&password, &ours));
    relay.start_again().await;
    streams(&relay).await;
    feed.on_primary("INSERT INTO orders VALUES (1, 'x')").await;
    assert_eq!(keys(&feed).await, [r#"{"id":1}"#]);
    // A right that is taken away stops the feed, be it on the events or on its progress, and given back it goes on.
    let mut expected = vec![r#"{"id":1}"#.to_owned()];
    for (id, topic) in [(2, TOPIC), (3, "walrelay.progress")] {
        let denied = Acl { user: "User:walrelay", topic };
        feed.deny_writing(denied).await;
        feed.on_primary(&format!("INSERT INTO orders VALUES ({id}, 'x')")).await;
        fails_with(&relay, &[topic, "uthorization"]).await;
        assert_eq!(feed.reader().read_one(TOPIC).await.len(), expected.len(), "{topic}: something is seen");
        feed.allow_writing(denied).await;
        relay.signal(libc::SIGHUP);
        streams(&relay).await;
        expected.push(format!("{{\"id\":{id}}}"));
        assert_eq!(keys(&feed).await, expected);
    }
    for secret in ["secret-word", "not-the-word"] {
        assert!(!relay.log().contains(secret), "a password is in the log");
    }
}
