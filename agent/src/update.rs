//! Update: other limits for a container that is there.

use husk_protocol::agent::{Empty, UpdateRequest};

use crate::agent::Agent;
use crate::calls::{Answer, encode};
use crate::check::check_resources;

impl Agent {
    /// Writes what the request names; the rest of the limits stays.
    pub(crate) fn update(&mut self, request: &UpdateRequest) -> Answer {
        let id = request.container.as_str();
        let container = self.container(id)?;
        container.check_is_there(id)?;
        let resources = request.resources.get_or_default();
        check_resources(resources)?;
        let serial = container.disk.clone();
        let disk = self.disks.number(&serial);
        if let Some(container) = self.containers.get_mut(id) {
            container.cgroup.write_limits(resources, disk.as_deref())?;
        }
        encode(&Empty::default())
    }
}
