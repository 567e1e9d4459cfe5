//! Whole transactions in commit order out of the stream of messages; open ones beyond the memory limit go to the spool folder. Decodes no rows.
