//! May this request be taken now, is it a duplicate, is it refused and why. Pure: the driver asks, and does what it is told.

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodStage {
    Creating,
    Ready,
    /// Its creation failed and something is left to be removed.
    Broken,
    Stopping,
    /// Stopped; `clean` where nothing is left in the kernel.
    Stopped {
        clean: bool,
    },
    Removing,
}

/// What is asked of a pod. A run is a repetition of the one that made it, or differs from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodAsk {
    /// The same key and the same configuration.
    RunSame,
    /// The same key and another configuration. `claimed`: somebody was told the id of the pod that is here.
    RunOther {
        claimed: bool,
    },
    Stop,
    Remove,
    /// Anything that needs the pod's shim: create or start a container.
    Use,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerStage {
    Creating,
    Created,
    Starting,
    Running,
    Exited,
    /// Its creation failed and something is left to be removed.
    Broken,
    Removing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerAsk {
    CreateSame,
    CreateOther,
    Start,
    /// Other limits.
    Update,
    Stop,
    Remove,
}

/// What is to be done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Begin.
    Take,
    /// The same is under way: answer both when it is done.
    Join,
    /// It is so already: answer at once.
    Done,
    /// Wait until what is under way has ended, then ask again.
    After,
    /// Remove what is here, then begin.
    Replace,
    /// The container runs: end it, then begin.
    KillFirst,
    /// ALREADY_EXISTS
    Exists(&'static str),
    /// FAILED_PRECONDITION
    Refuse(&'static str),
}

pub fn admit_pod(stage: PodStage, ask: PodAsk) -> Verdict {
    use {PodAsk as A, PodStage as S, Verdict as V};
    match (ask, stage) {
        (A::RunSame, S::Creating) => V::Join,
        (A::RunSame, S::Ready) => V::Done,
        (A::RunOther { .. }, S::Creating) => V::After,
        // Nobody was told of this pod: its caller had given up, and asks for another one now.
        (A::RunOther { claimed: false }, S::Ready) => V::Replace,
        (A::RunOther { claimed: true }, S::Ready) => V::Exists("it is ready"),
        (A::RunSame | A::RunOther { .. }, S::Broken) => V::Replace,
        (A::RunSame | A::RunOther { .. }, S::Stopping | S::Removing) => V::After,
        (A::RunSame | A::RunOther { .. }, S::Stopped { .. }) => {
            V::Exists("it has been stopped: remove it, or raise the attempt")
        }

        (A::Stop, S::Creating) => V::After,
        (A::Stop, S::Ready | S::Broken | S::Stopped { clean: false }) => V::Take,
        (A::Stop, S::Stopping) => V::Join,
        (A::Stop, S::Stopped { clean: true }) => V::Done,
        (A::Stop, S::Removing) => V::After,

        (A::Remove, S::Creating | S::Stopping) => V::After,
        (A::Remove, S::Ready | S::Broken | S::Stopped { .. }) => V::Take,
        (A::Remove, S::Removing) => V::Join,

        (A::Use, S::Ready) => V::Take,
        // Whoever knows its id has not been told it by us: NRI plugins hear of a pod before it is ready.
        (A::Use, S::Creating) => V::Refuse("it is still being made"),
        (A::Use, S::Broken) => V::Refuse("its creation failed"),
        (A::Use, S::Stopping) => V::Refuse("it is being stopped"),
        (A::Use, S::Stopped { .. }) => V::Refuse("it is not ready: it has been stopped"),
        (A::Use, S::Removing) => V::Refuse("it is being removed"),
    }
}

pub fn admit_container(stage: ContainerStage, ask: ContainerAsk) -> Verdict {
    use {ContainerAsk as A, ContainerStage as S, Verdict as V};
    match (ask, stage) {
        (A::CreateSame, S::Creating) => V::Join,
        (A::CreateSame, S::Created | S::Starting | S::Running) => V::Done,
        (A::CreateOther, S::Creating | S::Starting) => V::After,
        (A::CreateOther, S::Created) => V::Replace,
        (A::CreateOther, S::Running) => V::Exists("it is running"),
        (A::CreateSame | A::CreateOther, S::Exited) => {
            V::Exists("it has exited: remove it, or raise the attempt")
        }
        (A::CreateSame | A::CreateOther, S::Broken) => V::Replace,
        (A::CreateSame | A::CreateOther, S::Removing) => V::After,

        (A::Start, S::Creating) => V::After,
        (A::Start, S::Created) => V::Take,
        (A::Start, S::Starting) => V::Join,
        (A::Start, S::Running) => V::Refuse("it is running already"),
        (A::Start, S::Exited) => V::Refuse("it has exited already"),
        (A::Start, S::Broken) => V::Refuse("its creation failed"),
        (A::Start, S::Removing) => V::Refuse("it is being removed"),

        (A::Update, S::Creating | S::Starting) => V::After,
        (A::Update, S::Created | S::Running) => V::Take,
        (A::Update, S::Exited) => V::Refuse("it has exited already"),
        (A::Update, S::Broken) => V::Refuse("its creation failed"),
        (A::Update, S::Removing) => V::Refuse("it is being removed"),

        (A::Stop, S::Creating | S::Starting) => V::After,
        (A::Stop, S::Running) => V::Take,
        // What has not started has nothing to end: its removal is what its owner wants, and asks for next.
        (A::Stop, S::Created | S::Exited | S::Broken) => V::Done,
        (A::Stop, S::Removing) => V::After,

        (A::Remove, S::Creating | S::Starting) => V::After,
        (A::Remove, S::Created | S::Exited | S::Broken) => V::Take,
        (A::Remove, S::Running) => V::KillFirst,
        (A::Remove, S::Removing) => V::Join,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        ContainerAsk as CA, ContainerStage as CS, PodAsk as PA, PodStage as PS, Verdict as V, *,
    };

    const POD_STAGES: [PS; 7] = [
        PS::Creating,
        PS::Ready,
        PS::Broken,
        PS::Stopping,
        PS::Stopped { clean: true },
        PS::Stopped { clean: false },
        PS::Removing,
    ];
    const CONTAINER_STAGES: [CS; 7] = [
        CS::Creating,
        CS::Created,
        CS::Starting,
        CS::Running,
        CS::Exited,
        CS::Broken,
        CS::Removing,
    ];

    #[test]
    fn a_repeated_run_joins_or_returns_and_never_finds_a_reserved_name_rel_04() {
        for (stage, verdict) in [
            (PS::Creating, V::Join),
            (PS::Ready, V::Done),
            (PS::Broken, V::Replace),
            (PS::Stopping, V::After),
            (PS::Removing, V::After),
        ] {
            assert_eq!(admit_pod(stage, PA::RunSame), verdict, "{stage:?}");
        }
    }

    #[test]
    fn a_changed_run_replaces_a_pod_that_nobody_was_told_of_rel_04() {
        let ask = |claimed| PA::RunOther { claimed };
        assert_eq!(admit_pod(PS::Creating, ask(false)), V::After);
        assert_eq!(admit_pod(PS::Ready, ask(false)), V::Replace);
        assert!(matches!(admit_pod(PS::Ready, ask(true)), V::Exists(_)));
    }

    #[test]
    fn stop_of_a_stopped_pod_is_a_no_op_rel_21() {
        assert_eq!(admit_pod(PS::Stopped { clean: true }, PA::Stop), V::Done);
        assert_eq!(admit_pod(PS::Stopped { clean: false }, PA::Stop), V::Take);
    }

    #[test]
    fn stop_and_remove_are_never_refused_rel_21() {
        for stage in POD_STAGES {
            for ask in [PA::Stop, PA::Remove] {
                let verdict = admit_pod(stage, ask);
                assert!(
                    matches!(verdict, V::Take | V::Join | V::Done | V::After),
                    "{ask:?} at {stage:?}: {verdict:?}"
                );
            }
        }
        for stage in CONTAINER_STAGES {
            for ask in [CA::Stop, CA::Remove] {
                let verdict = admit_container(stage, ask);
                assert!(
                    matches!(
                        verdict,
                        V::Take | V::Join | V::Done | V::After | V::KillFirst
                    ),
                    "{ask:?} at {stage:?}: {verdict:?}"
                );
            }
        }
    }

    #[test]
    fn only_a_ready_pod_takes_containers() {
        for stage in POD_STAGES {
            let taken = admit_pod(stage, PA::Use) == V::Take;
            assert_eq!(taken, stage == PS::Ready, "{stage:?}");
        }
    }

    #[test]
    fn a_repeated_create_joins_or_returns_rel_04() {
        for (stage, verdict) in [
            (CS::Creating, V::Join),
            (CS::Created, V::Done),
            (CS::Running, V::Done),
            (CS::Broken, V::Replace),
            (CS::Removing, V::After),
        ] {
            assert_eq!(admit_container(stage, CA::CreateSame), verdict, "{stage:?}");
        }
    }

    #[test]
    fn a_changed_create_replaces_what_has_not_started_and_only_that_rel_04() {
        for (stage, verdict) in [
            (CS::Creating, V::After),
            (CS::Created, V::Replace),
            (CS::Running, V::Exists("it is running")),
        ] {
            assert_eq!(
                admit_container(stage, CA::CreateOther),
                verdict,
                "{stage:?}"
            );
        }
    }

    #[test]
    fn a_container_starts_once() {
        for stage in CONTAINER_STAGES {
            let taken = admit_container(stage, CA::Start) == V::Take;
            assert_eq!(taken, stage == CS::Created, "{stage:?}");
        }
    }
}
