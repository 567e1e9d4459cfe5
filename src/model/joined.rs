//! The end of a task that somebody waits for. A panic of it goes on there: as an error its text would be told, which may hold a row's value.

use std::panic::resume_unwind;

use tokio::task::JoinError;

/// What the task gave; as text, why it was ended before.
///
/// # Panics
/// As the task did.
pub fn joined<T>(ended: Result<T, JoinError>) -> Result<T, String> {
    ended.map_err(|error| match error.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(error) => error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_goes_on_and_what_was_ended_says_nothing_of_its_own() {
        let task = tokio::spawn(async { joined(tokio::spawn(async { panic!("secret") }).await) });
        assert!(task.await.unwrap_err().is_panic());
        let ended = tokio::spawn(std::future::pending::<()>());
        ended.abort();
        assert!(joined(ended.await).unwrap_err().contains("cancelled"));
        assert_eq!(joined(tokio::spawn(async { 1 }).await), Ok(1));
    }
}
