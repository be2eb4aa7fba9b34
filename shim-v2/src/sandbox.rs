//! containerd's sandbox service, for pods whose sandbox is the shim itself (`sandboxer = "shim"`): no container stands
//! for it, and its configuration comes by these calls.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest, PlatformResponse,
    SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse, ShutdownSandboxRequest,
    ShutdownSandboxResponse, StartSandboxRequest, StartSandboxResponse, StopSandboxRequest, StopSandboxResponse,
    WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_sync::{Sandbox, create_sandbox};
use containerd_shim_protos::ttrpc::{self, Code, TtrpcContext, get_status};
use husk_sandbox::agent::StatsResponse;
use husk_sandbox::bundle::{Bundle, PodSandbox};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use crate::error::{ShimError, chain};
use crate::farewell;
use crate::generated::options::{LinuxPodSandboxConfig, PodSandboxConfig};
use crate::pod::Pod;
use crate::process::{Exit, lock};
use crate::stats;
use crate::task::Methods;

/// States as containerd names them.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// A call of newer containerds.
const UPDATE: &str = "/containerd.runtime.sandbox.v1.Sandbox/UpdateSandbox";

/// containerd's type of an OCI configuration, as JSON.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

/// containerd's calls to the sandbox.
struct Service {
    pod: Arc<Pod>,
    state: Mutex<State>,
}

/// How far the sandbox is.
#[derive(Default)]
struct State {
    /// What it is made from, until it is started.
    bundle: Option<Bundle>,
    /// The same as containerd wants it.
    spec: Any,
    started: Option<SystemTime>,
}

/// The methods of the service.
pub(crate) fn methods(pod: &Arc<Pod>) -> Methods {
    let mut methods = create_sandbox(Arc::new(Service {
        pod: Arc::clone(pod),
        state: Mutex::default(),
    }));
    methods.insert(UPDATE.into(), Box::new(Unimplemented));
    methods
}

/// Answers a call that the service of this version of the protocol does not know: containerd 2.4 makes it when a pod's
/// resources change, and goes on where it is not implemented.
struct Unimplemented;

impl ttrpc::MethodHandler for Unimplemented {
    fn handler(&self, context: TtrpcContext, _: ttrpc::Request) -> ttrpc::Result<()> {
        let mut response = ttrpc::Response::new();
        response.set_status(get_status(
            Code::UNIMPLEMENTED,
            "husk does not change a running machine",
        ));
        context.respond(context.mh.stream_id, response)
    }
}

impl Service {
    fn start(&self, name: &str) -> Result<(u32, SystemTime), ShimError> {
        let bundle = lock(&self.state).bundle.take().ok_or(ShimError::NoSandbox)?;
        let pid = self.pod.start_apart(name, bundle).inspect_err(|error| {
            tracing::error!(error = chain(error), "the sandbox cannot be started");
        })?;
        let now = SystemTime::now();
        lock(&self.state).started = Some(now);
        Ok((pid, now))
    }

    /// What all containers use together.
    fn used(&self) -> Result<StatsResponse, ShimError> {
        let guest = self.pod.guest()?;
        let mut all = StatsResponse::default();
        for container in self.pod.containers() {
            let Ok(one) = guest.stats(&container.id) else {
                // It is just being taken down.
                continue;
            };
            all.cpu_usage_us += one.cpu_usage_us;
            all.cpu_user_us += one.cpu_user_us;
            all.cpu_system_us += one.cpu_system_us;
            all.memory_current += one.memory_current;
            all.pids_current += one.pids_current;
            for (name, value) in one.memory {
                *all.memory.entry(name).or_default() += value;
            }
        }
        Ok(all)
    }
}

impl Sandbox for Service {
    fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> ttrpc::Result<CreateSandboxResponse> {
        let pod = described(&request)?;
        let bundle = Bundle::pod_sandbox(Path::new(&request.bundle_path), &pod).map_err(ShimError::from)?;
        // It boots while containerd goes on.
        self.pod.boot(&bundle)?;
        let mut state = lock(&self.state);
        state.bundle = Some(bundle);
        state.spec = Any {
            type_url: SPEC.into(),
            value: pod.config().to_string().into_bytes(),
            ..Default::default()
        };
        Ok(CreateSandboxResponse::new())
    }

    fn start_sandbox(&self, _: &TtrpcContext, request: StartSandboxRequest) -> ttrpc::Result<StartSandboxResponse> {
        let (pid, created) = self.start(&request.sandbox_id)?;
        Ok(StartSandboxResponse {
            pid,
            created_at: Some(created.into()).into(),
            spec: Some(lock(&self.state).spec.clone()).into(),
            ..Default::default()
        })
    }

    fn platform(&self, _: &TtrpcContext, _: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        let mut response = PlatformResponse::new();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".into();
        // The guest's processor is the host's.
        platform.architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64".into(),
            other => other.into(),
        };
        Ok(response)
    }

    fn stop_sandbox(&self, _: &TtrpcContext, _: StopSandboxRequest) -> ttrpc::Result<StopSandboxResponse> {
        self.pod.end_sandbox(Exit {
            status: 0,
            at: SystemTime::now(),
        });
        Ok(StopSandboxResponse::new())
    }

    fn wait_sandbox(&self, context: &TtrpcContext, _: WaitSandboxRequest) -> ttrpc::Result<WaitSandboxResponse> {
        let exit = self.pod.ended.wait(&context.cancel_rx).ok_or(ShimError::Deserted)?;
        Ok(WaitSandboxResponse {
            exit_status: exit.status,
            exited_at: Some(exit.at.into()).into(),
            ..Default::default()
        })
    }

    fn sandbox_status(&self, _: &TtrpcContext, request: SandboxStatusRequest) -> ttrpc::Result<SandboxStatusResponse> {
        let started = lock(&self.state).started;
        let end = self.pod.ended.get();
        let mut response = SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: self.pod.pid(),
            state: match (started, end) {
                (Some(_), None) => READY.into(),
                _ => NOT_READY.into(),
            },
            created_at: started.map(Into::into).into(),
            exited_at: end.map(|exit| exit.at.into()).into(),
            ..Default::default()
        };
        if request.verbose {
            let info = &mut response.info;
            info.insert("shim_pid".into(), std::process::id().to_string());
            info.insert("version".into(), env!("CARGO_PKG_VERSION").into());
            let status = self
                .pod
                .sandbox()
                .ok()
                .and_then(|sandbox| sandbox.link().ok()?.status().ok());
            if let Some(status) = status {
                info.insert("machine".into(), serde_json::to_string(&status).unwrap_or_default());
            }
        }
        Ok(response)
    }

    fn ping_sandbox(&self, _: &TtrpcContext, _: PingRequest) -> ttrpc::Result<PingResponse> {
        match self.pod.ended.get() {
            None => Ok(PingResponse::new()),
            Some(_) => Err(ShimError::NoSandbox.into()),
        }
    }

    fn shutdown_sandbox(
        &self,
        context: &TtrpcContext,
        _: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        self.pod.end_sandbox(Exit::killed());
        self.pod.drain();
        farewell::answer(context, &self.pod)
    }

    fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let used = self.used()?;
        let mut response = SandboxMetricsResponse::new();
        let metrics = response.metrics.mut_or_insert_default();
        metrics.id = request.sandbox_id;
        metrics.timestamp = Some(SystemTime::now().into()).into();
        metrics.data = Some(stats::message(&used)).into();
        Ok(response)
    }
}

/// What the CRI says of the pod.
fn described(request: &CreateSandboxRequest) -> Result<PodSandbox, ShimError> {
    let config = match request.options.as_ref() {
        Some(options) if options.type_url.ends_with("PodSandboxConfig") => {
            PodSandboxConfig::parse_from_bytes(&options.value).map_err(|_| ShimError::Missing { what: "options" })?
        }
        _ => PodSandboxConfig::new(),
    };
    if config.linux.is_some() && request.netns_path.is_empty() {
        return Err(ShimError::HostNetwork);
    }
    let linux = config.linux.get_or_default();
    let mut annotations: std::collections::BTreeMap<_, _> = config.annotations.clone().into_iter().collect();
    annotations.extend(request.annotations.clone());
    // As the CRI says it to sandboxes that are containers.
    let resources = linux.resources.get_or_default();
    for (name, value) in [
        ("cpu-period", resources.cpu_period),
        ("cpu-quota", resources.cpu_quota),
        ("memory", resources.memory_limit_in_bytes),
    ] {
        if value > 0 {
            annotations.insert(format!("io.kubernetes.cri.sandbox-{name}"), value.to_string());
        }
    }
    annotations.insert("io.kubernetes.cri.container-type".into(), "sandbox".into());
    Ok(PodSandbox {
        hostname: config.hostname.clone(),
        network: Some(&request.netns_path)
            .filter(|path| !path.is_empty())
            .map(Into::into),
        cgroups_path: cgroups_path(linux, &request.sandbox_id),
        sysctls: linux.sysctls.clone().into_iter().collect(),
        annotations,
    })
}

/// The sandbox's cgroup below the pod's, as the CRI names those of containers: for systemd where the pod's is a slice.
fn cgroups_path(linux: &LinuxPodSandboxConfig, id: &str) -> String {
    let parent = linux.cgroup_parent.as_str();
    match parent.rsplit('/').next() {
        None | Some("") => String::new(),
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        Some(_) => format!("{parent}/{id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generated::options::LinuxContainerResources;

    fn request(config: &PodSandboxConfig, network: &str) -> CreateSandboxRequest {
        CreateSandboxRequest {
            sandbox_id: "pod".into(),
            netns_path: network.into(),
            options: Some(Any {
                type_url: "runtime.v1.PodSandboxConfig".into(),
                value: config.write_to_bytes().unwrap(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_pod_is_what_the_cri_says() {
        let linux = LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/one".into(),
            resources: Some(LinuxContainerResources {
                memory_limit_in_bytes: 1 << 30,
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        let config = PodSandboxConfig {
            hostname: "the-pod".into(),
            annotations: [("dev.husk.cpus".to_owned(), "2".to_owned())].into(),
            linux: Some(linux).into(),
            ..Default::default()
        };
        let pod = described(&request(&config, "/run/netns/x")).unwrap();
        assert_eq!(
            (pod.hostname.as_str(), pod.cgroups_path.as_str()),
            ("the-pod", "/kubepods/one/pod")
        );
        assert_eq!(pod.annotations["io.kubernetes.cri.sandbox-memory"], "1073741824");
        assert_eq!(pod.annotations["dev.husk.cpus"], "2");
        assert!(Bundle::pod_sandbox(Path::new("/b"), &pod).is_ok());
        assert!(matches!(described(&request(&config, "")), Err(ShimError::HostNetwork)));
        assert!(
            described(&CreateSandboxRequest::new()).is_ok(),
            "without a configuration"
        );
    }

    #[test]
    fn a_slice_is_systemds() {
        let of = |parent: &str| {
            let linux = LinuxPodSandboxConfig {
                cgroup_parent: parent.into(),
                ..Default::default()
            };
            cgroups_path(&linux, "pod")
        };
        assert_eq!(of("/a.slice/b.slice"), "b.slice:cri-containerd:pod");
        assert_eq!((of("/a/b").as_str(), of("").as_str()), ("/a/b/pod", ""));
    }
}
