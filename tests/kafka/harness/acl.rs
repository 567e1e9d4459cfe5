//! Rights on a topic, taken away and given back, by the client's native interface: the crate has none for them.

use std::ffi::CString;
use std::ptr;

use rdkafka::bindings as native;
use rdkafka::client::{Client, DefaultClientContext};

use super::{Feed, PATIENCE};

/// Who, and on what.
#[derive(Clone, Copy, Debug)]
pub struct Acl {
    pub user: &'static str,
    pub topic: &'static str,
}

impl Feed {
    /// Denies writing. The broker must have an authorizer, under which everything else is allowed.
    pub async fn deny_writing(&self, acl: Acl) {
        let admin = self.admin();
        tokio::task::spawn_blocking(move || change(admin.inner(), acl, true)).await.unwrap();
    }

    /// Takes the denial back.
    pub async fn allow_writing(&self, acl: Acl) {
        let admin = self.admin();
        tokio::task::spawn_blocking(move || change(admin.inner(), acl, false)).await.unwrap();
    }
}

fn change(client: &Client<DefaultClientContext>, acl: Acl, is_denied: bool) {
    let text = |text: &str| CString::new(text).unwrap();
    let (topic, user, host) = (text(acl.topic), text(acl.user), text("*"));
    let mut said = [0; 256];
    // SAFETY: the texts outlive the calls; what is made is destroyed once, after its last use; the client is alive.
    unsafe {
        let handle = client.native_ptr();
        let queue = native::rd_kafka_queue_new(handle);
        let make = if is_denied { native::rd_kafka_AclBinding_new } else { native::rd_kafka_AclBindingFilter_new };
        let mut binding = make(
            native::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC,
            topic.as_ptr(),
            native::rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_LITERAL,
            user.as_ptr(),
            host.as_ptr(),
            native::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE,
            native::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_DENY,
            said.as_mut_ptr(),
            said.len(),
        );
        assert!(!binding.is_null());
        if is_denied {
            native::rd_kafka_CreateAcls(handle, &raw mut binding, 1, ptr::null(), queue);
        } else {
            native::rd_kafka_DeleteAcls(handle, &raw mut binding, 1, ptr::null(), queue);
        }
        let event = native::rd_kafka_queue_poll(queue, PATIENCE.as_millis() as i32);
        assert!(!event.is_null(), "the broker does not answer");
        let code = native::rd_kafka_event_error(event);
        native::rd_kafka_event_destroy(event);
        native::rd_kafka_AclBinding_destroy(binding);
        native::rd_kafka_queue_destroy(queue);
        assert_eq!(code, native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
    }
}
