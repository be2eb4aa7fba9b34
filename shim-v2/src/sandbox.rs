//! containerd's sandbox service, for pods whose sandbox is the shim itself (`sandboxer = "shim"`).

use std::sync::Arc;

use crate::pod::Pod;
use crate::task::Methods;

/// The methods of the service.
pub(crate) fn methods(_pod: &Arc<Pod>) -> Methods {
    Methods::new()
}
