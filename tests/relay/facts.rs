//! What the catalog of every version says about a table for its Kafka events.

use std::path::Path;

use walrelay::model::QualifiedName;
use walrelay::sink::kafka::encode::{TableFacts, catalog_query, read_facts};
use walrelay::throwaway::{Options, Server, find_major};
use walrelay::wire::{Connection, Session};

use super::harness::major_versions;

const SCHEMA: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN price AS numeric(8, 3) NOT NULL; CREATE DOMAIN cheap AS price;
    CREATE TABLE t (dropped int, b text, a int, e mood, many mood[], d cheap, n numeric(10, 2) DEFAULT 1.5, s serial,
        i int GENERATED ALWAYS AS IDENTITY, g int GENERATED ALWAYS AS (1) STORED, PRIMARY KEY (a, b));
    ALTER TABLE t DROP COLUMN dropped;
    CREATE UNIQUE INDEX z ON t (s) INCLUDE (n); CREATE UNIQUE INDEX y ON t (e, s) WHERE a > 0; CREATE UNIQUE INDEX x ON t ((a + 1));
    CREATE TABLE \"It's\" (k int NOT NULL); CREATE UNIQUE INDEX k ON \"It's\" (k); ALTER TABLE \"It's\" REPLICA IDENTITY USING INDEX k;
    CREATE TABLE p (id int, PRIMARY KEY (id)) PARTITION BY RANGE (id); CREATE TABLE empty ()";

async fn facts(major: u32, tables: &[&str]) -> Vec<TableFacts> {
    let installation = find_major(major, Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let server = Server::start(&installation, Options::default()).await.unwrap();
    let url = server.server_url("postgres").unwrap();
    let mut sql = Connection::connect(&url, &Session::new("facts").with("search_path", "public")).await.unwrap();
    sql.simple_query(SCHEMA).await.unwrap();
    let names: Vec<QualifiedName> = tables.iter().map(|table| QualifiedName::new("public", *table)).collect();
    let answer = sql.simple_query(&catalog_query(&names)).await.unwrap();
    let texts: Vec<String> =
        answer[0].rows.iter().map(|row| String::from_utf8_lossy(row[0].as_deref().unwrap()).into_owned()).collect();
    read_facts(texts.iter().map(String::as_str)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_version_tells_keys_types_and_defaults() {
    for major in major_versions() {
        let found = facts(major, &["t", "It's", "p", "empty", "gone"]).await;
        let of = |name: &str| found.iter().find(|facts| facts.name == name).unwrap();
        assert_eq!(found.len(), 4, "{major}");
        let t = of("t");
        let names: Vec<&str> = t.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["b", "a", "e", "many", "d", "n", "s", "i", "g"]);
        assert_eq!(t.primary_key, ["a", "b"]);
        let indexes: Vec<(&str, &[String])> =
            t.unique_indexes.iter().map(|index| (index.name.as_str(), index.columns.as_slice())).collect();
        assert_eq!(indexes, [("y", &["e".to_owned(), "s".to_owned()][..]), ("z", &["s".to_owned()])]);
        let column = |name: &str| t.column(name).unwrap();
        assert_eq!(
            (column("e").base.kind.as_str(), &column("e").base.labels[..]),
            ("e", &["sad".to_owned(), "ok".to_owned()][..])
        );
        assert_eq!(column("many").base.element.as_ref().unwrap().name, "mood");
        let domain = column("d");
        assert_eq!(
            (domain.base.name.as_str(), domain.base.oid, domain.base.modifier),
            ("numeric", 1700, (8 << 16 | 3) + 4)
        );
        assert!(domain.is_not_null && domain.type_oid != 1700 && column("a").is_not_null && !column("n").is_not_null);
        assert_eq!(column("n").default.as_deref(), Some("1.5"));
        assert!(column("s").is_counting && column("i").is_counting && !column("g").is_counting);
        assert_eq!(column("g").default, None);
        assert_eq!((of("It's").identity_index[0].as_str(), of("It's").replica_identity.as_str()), ("k", "i"));
        assert_eq!(of("p").primary_key, ["id"]);
        assert!(of("empty").columns.is_empty());
    }
}
