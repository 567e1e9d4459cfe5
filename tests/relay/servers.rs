//! The throw-away servers themselves: every version starts, survives a crash with its data, and leaves nothing behind.

use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt;

use walrelay::throwaway::Options;

use super::harness::{major_versions, server, start_server, value, values};

#[tokio::test(flavor = "multi_thread")]
async fn every_version_starts_crashes_and_comes_back_with_its_data() {
    for major in major_versions() {
        let mut server = server(major).await;
        let version = value(&server, "postgres", "SHOW server_version_num").await;
        assert_eq!(version.parse::<u32>().unwrap() / 10_000, major);
        values(&server, "postgres", "CREATE TABLE t (a int); INSERT INTO t VALUES (7)").await;
        server.kill9();
        server.start_again().await.unwrap();
        assert_eq!(value(&server, "postgres", "SELECT a FROM t").await, "7");
        let folder = server.folder().to_path_buf();
        let process = format!("/proc/{}", server.process_id().unwrap());
        drop(server);
        assert!(!folder.exists() && !std::path::Path::new(&process).exists(), "something is left of {major}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_server_is_reached_by_its_own_account_and_by_no_address() {
    for major in major_versions().into_iter().filter(|major| [14, 18].contains(major)) {
        let server = start_server(major, Options::private()).await;
        assert_eq!(value(&server, "postgres", "SELECT current_user").await, "postgres");
        let mode = std::fs::metadata(server.folder()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "who may not enter the folder cannot reach the socket");
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).is_err());
    }
}
