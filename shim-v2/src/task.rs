//! containerd's task service, under its two names: the messages of versions 2 and 3 are the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest, CreateTaskResponse,
    DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest, PidsRequest, PidsResponse,
    ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest, StartResponse, StateRequest,
    StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};
use containerd_shim_protos::ttrpc::{self, TtrpcContext};
use containerd_shim_protos::{Task, create_task};
use husk_sandbox::agent::WindowSize;
use husk_sandbox::bundle::resources::Update;
use husk_sandbox::guest::GuestError;

use crate::error::ShimError;
use crate::farewell;
use crate::pod::{Creation, Pod};
use crate::process::Stage;
use crate::stats;
use crate::stdio::Stdio;

/// The service's name in its messages, and the one that older containerds use.
const NAME: &str = "/containerd.task.v3.Task/";
const OLD_NAME: &str = "/containerd.task.v2.Task/";

/// docker's namespace in containerd.
const DOCKER: &str = "moby";

/// How long the end of a machine may take to be told.
const END: Duration = Duration::from_secs(10);
/// The most processes that are told of: as many as a kernel numbers without being asked for more, twice.
const MOST_PIDS: usize = 1 << 16;
const SIGKILL: u32 = libc::SIGKILL.cast_unsigned();

/// containerd's calls to the pod.
struct Service(Arc<Pod>);

/// The methods of the service by their names.
pub(crate) type Methods = HashMap<String, Box<dyn ttrpc::MethodHandler + Send + Sync>>;

/// The service under both of its names.
pub(crate) fn methods(pod: &Arc<Pod>) -> Methods {
    let named = |pod: &Arc<Pod>| create_task(Arc::new(Service(Arc::clone(pod))));
    let mut methods = named(pod);
    let old = named(pod).into_iter();
    methods.extend(old.map(|(name, method)| (name.replace(NAME, OLD_NAME), method)));
    methods
}

impl Task for Service {
    fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let container = self.0.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let is_paused = container.is_paused.load(Ordering::Acquire);
        let stage = process.stage();
        let (status, exit) = match &*stage {
            Stage::Added(_) | Stage::Created => (Status::CREATED, None),
            Stage::Exited(exit) => (Status::STOPPED, Some(*exit)),
            Stage::Starting(_) | Stage::Running if is_paused => (Status::PAUSED, None),
            Stage::Starting(_) | Stage::Running => (Status::RUNNING, None),
        };
        // A further process that was never made has none.
        let pid = match &*stage {
            Stage::Added(_) => 0,
            _ => self.0.pid(),
        };
        Ok(StateResponse {
            id: container.id.clone(),
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid,
            status: status.into(),
            stdin: process.stdio.stdin.clone(),
            stdout: process.stdio.stdout.clone(),
            stderr: process.stdio.stderr.clone(),
            terminal: process.stdio.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| exit.at.into()).into(),
            exec_id: request.exec_id,
            ..Default::default()
        })
    }

    fn create(&self, context: &TtrpcContext, request: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let limit = u64::try_from(context.timeout_nano).ok().filter(|limit| *limit > 0);
        let deadline = limit.and_then(|limit| Instant::now().checked_add(Duration::from_nanos(limit)));
        if !request.checkpoint.is_empty() {
            return Err(ShimError::Unimplemented("the restoration of a checkpoint").into());
        }
        let pid = self.0.create(Creation {
            id: request.id,
            bundle: request.bundle.into(),
            rootfs: request.rootfs,
            stdio: Stdio {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            deadline,
        })?;
        Ok(CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        Ok(StartResponse {
            pid: self.0.start(&request.id, &request.exec_id)?,
            ..Default::default()
        })
    }

    fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let pid = self.0.pid();
        let exit = self.0.delete(&request.id, &request.exec_id)?;
        Ok(DeleteResponse {
            pid,
            exit_status: exit.status,
            exited_at: Some(exit.at.into()).into(),
            ..Default::default()
        })
    }

    fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let container = self.0.container(&request.id)?;
        // containerd forgets a container, exit code and all, that has no process left when it comes back.
        let has_exited = matches!(*container.init.stage(), Stage::Exited(_));
        // docker looks for the numbers on the host, where others have them.
        let pids = if has_exited || self.0.namespace == DOCKER {
            vec![self.0.pid()]
        } else {
            match self.0.guest()?.state(&container.id) {
                Ok(state) => {
                    let first = state.processes.iter().find(|process| process.exec.is_empty());
                    let first = first.map(|process| process.pid);
                    // The first one has the number by which containerd knows the task; callers look for that one.
                    let known = |pid| if Some(pid) == first { self.0.pid() } else { pid };
                    state.pids.into_iter().take(MOST_PIDS).map(known).collect()
                }
                // The machine ends, with a container whose end is not told yet.
                Err(error) if error.is_lost() => vec![self.0.pid()],
                Err(error) => return Err(ShimError::from(error).into()),
            }
        };
        let process = |pid| ProcessInfo {
            pid,
            ..Default::default()
        };
        Ok(PidsResponse {
            processes: pids.into_iter().map(process).collect(),
            ..Default::default()
        })
    }

    fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        self.0.guest()?.pause(&container.id).map_err(ShimError::from)?;
        container.is_paused.store(true, Ordering::Release);
        self.0.events.publish(&TaskPaused {
            container_id: request.id,
            ..Default::default()
        });
        Ok(Empty::new())
    }

    fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        self.0.guest()?.resume(&container.id).map_err(ShimError::from)?;
        container.is_paused.store(false, Ordering::Release);
        self.0.events.publish(&TaskResumed {
            container_id: request.id,
            ..Default::default()
        });
        Ok(Empty::new())
    }

    fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(ShimError::Unimplemented("a checkpoint of a container").into())
    }

    fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let process = self.0.process(&request.id, &request.exec_id)?;
        match *process.stage() {
            Stage::Exited(_) => return Err(ShimError::Finished.into()),
            Stage::Added(_) => return Err(ShimError::NotRunning(request.exec_id).into()),
            _ => {}
        }
        if request.signal == SIGKILL && request.exec_id.is_empty() {
            // Whatever the guest answers.
            self.0.insist_on_end(Arc::clone(&process));
        }
        match self.0.guest()?.kill(&process.id, request.signal, request.all) {
            Ok(()) => Ok(Empty::new()),
            Err(error) => {
                // The process has ended, alone or with its machine, and that is about to be told.
                let is_over = error.is_lost() || matches!(error, GuestError::State(_) | GuestError::Absent(_));
                match is_over && process.ended.wait_for(END).is_some() {
                    true => Err(ShimError::Finished.into()),
                    false => Err(ShimError::from(error).into()),
                }
            }
        }
    }

    fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let stdio = Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let spec = request.spec.as_ref().ok_or(ShimError::Missing { what: "spec" })?;
        self.0.exec(&request.id, &request.exec_id, &spec.value, stdio)?;
        Ok(Empty::new())
    }

    fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let process = self.0.process(&request.id, &request.exec_id)?;
        if !process.stdio.terminal || matches!(*process.stage(), Stage::Added(_)) {
            // As with runc's shim there is nothing to be sized.
            return Ok(Empty::new());
        }
        let window = WindowSize {
            columns: request.width,
            rows: request.height,
            ..Default::default()
        };
        self.0.guest()?.resize(&process.id, window).map_err(ShimError::from)?;
        Ok(Empty::new())
    }

    fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let process = self.0.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::new())
    }

    fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let container = self.0.container(&request.id)?;
        let resources = request
            .resources
            .as_ref()
            .ok_or(ShimError::Missing { what: "resources" })?;
        let update = Update::parse(&resources.value).map_err(ShimError::from)?;
        let updated = self.0.guest()?.update(&container.id, &update, &container.root);
        updated.map_err(ShimError::from)?;
        Ok(Empty::new())
    }

    fn wait(&self, context: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let process = self.0.process(&request.id, &request.exec_id)?;
        let exit = process.ended.wait(&context.cancel_rx).ok_or(ShimError::Deserted)?;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(exit.at.into()).into(),
            ..Default::default()
        })
    }

    fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let container = self.0.container(&request.id)?;
        let used = self.0.guest()?.stats(&container.id).map_err(ShimError::from)?;
        Ok(StatsResponse {
            stats: Some(stats::message(&used)).into(),
            ..Default::default()
        })
    }

    fn connect(&self, _: &TtrpcContext, _: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.0.pid(),
            ..Default::default()
        })
    }

    fn shutdown(&self, context: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        if self.0.may_end() {
            self.0.drain();
            farewell::answer(context, &self.0)
        }
        Ok(Empty::new())
    }
}
