//! The cases, by what they are about.

mod confinement;
mod filesystem;
mod hooks;
mod lifecycle;
mod limits;
mod speed;
mod user_namespaces;

use crate::world::World;

pub type Case = fn(&mut World);

macro_rules! cases {
    ($($module:ident :: $name:ident),* $(,)?) => {
        pub const ALL: &[(&str, Case)] = &[$((concat!(stringify!($module), "::", stringify!($name)), $module::$name)),*];
    };
}

cases! {
    lifecycle::a_container_runs_and_its_exit_code_and_output_are_its_own,
    lifecycle::an_init_that_ends_at_once_still_gives_its_status,
    lifecycle::a_hook_need_not_read_the_state,
    lifecycle::a_killed_container_ends_with_137,
    lifecycle::a_created_container_does_not_run_and_can_be_deleted,
    lifecycle::a_missing_command_is_127_and_one_not_executable_126,
    lifecycle::kill_all_reaches_every_process,
    lifecycle::delete_is_idempotent_and_kills_what_is_left,
    lifecycle::another_process_can_clean_up,
    lifecycle::two_overlapping_creates_do_not_disturb_each_other,
    lifecycle::a_hundred_execs_leave_nothing_behind,
    lifecycle::a_create_that_fails_leaves_nothing_behind,
    lifecycle::a_terminal_is_the_containers_own,
    lifecycle::the_pods_pause_holds_namespaces_and_ends_on_sigterm,
    confinement::init_and_exec_are_in_the_same_namespaces,
    confinement::init_and_exec_are_equally_confined,
    confinement::a_filter_without_no_new_privileges_leaves_the_request_exact,
    confinement::the_profile_holds_in_init_and_exec,
    confinement::descriptors_are_the_allow_list_in_every_stage,
    confinement::a_working_directory_outside_the_root_is_refused,
    confinement::a_privileged_container_has_what_this_process_has,
    confinement::a_label_that_can_not_be_given_is_refused,
    confinement::an_environment_arrives_as_it_was_given,
    filesystem::mounts_propagate_as_asked_and_readonly_holds,
    filesystem::masked_and_readonly_paths_hold,
    filesystem::a_forged_dev_null_masks_nothing_else,
    filesystem::devices_sysctls_and_rlimits_are_as_asked,
    filesystem::stdout_can_be_opened_again_by_a_user,
    hooks::late_hooks_run_on_the_node_with_the_state_and_in_their_order,
    hooks::a_poststart_hook_that_fails_ends_the_container,
    hooks::a_create_that_fails_runs_the_poststop_hooks,
    hooks::a_cleanup_by_another_process_runs_the_poststop_hooks_once,
    limits::limits_are_in_the_kernel_and_membership_in_every_hierarchy,
    limits::a_spinning_container_is_throttled_and_lives,
    limits::a_container_over_its_memory_limit_is_killed_and_its_neighbour_lives,
    user_namespaces::a_container_is_root_inside_and_nobody_outside,
    user_namespaces::containers_join_the_user_namespace_of_their_pod,
    user_namespaces::maps_that_are_not_taken_make_no_container,
    user_namespaces::mounts_show_their_owners_through_their_map_or_are_not_made,
    user_namespaces::a_terminal_in_a_user_namespace_is_its_users,
    user_namespaces::ambient_capabilities_reach_a_user_in_init_and_exec,
    speed::timings,
}
