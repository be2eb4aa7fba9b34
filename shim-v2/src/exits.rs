//! What the guest tells by itself: that processes have ended, and that memory was short.

use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use containerd_shim_protos::events::task::TaskOOM;
use husk_sandbox::agent::{Event, event::Kind};
use husk_sandbox::guest::{Guest, ProcessId};

use crate::error::ShimError;
use crate::pod::Pod;
use crate::process::Exit;

/// Listens to the guest until its machine ends, which ends everything in it.
pub(crate) fn watch(pod: Arc<Pod>, guest: Arc<Guest>) -> Result<(), ShimError> {
    let listen = move || {
        let mut last = 0;
        loop {
            match guest.events(last) {
                Ok(response) => {
                    for event in response.events {
                        last = event.sequence;
                        take(&pod, event);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "the guest tells nothing any more");
                    break;
                }
            }
        }
        // A guest that keeps silent has lost its machine, or loses it now.
        if let Ok(sandbox) = pod.sandbox() {
            sandbox.hang_up();
        }
        pod.machine_ended();
    };
    let thread = thread::Builder::new().name("exits".into());
    thread.spawn(listen).map(drop).map_err(ShimError::Thread)
}

fn take(pod: &Pod, event: Event) {
    match event.kind.enum_value_or_default() {
        Kind::EXIT => {
            let id = ProcessId {
                container: event.container,
                exec: event.exec,
            };
            let exit = Exit {
                status: event.status,
                // By the guest's clock it may have ended before containerd, by the host's, has started it.
                at: SystemTime::now(),
            };
            pod.process_ended(&id, exit);
        }
        Kind::OOM => {
            let Ok(container) = pod.container(&event.container) else {
                return;
            };
            if container.may_tell_oom() {
                pod.events.publish(&TaskOOM {
                    container_id: event.container,
                    ..Default::default()
                });
            }
        }
        Kind::UNKNOWN => {}
    }
}
