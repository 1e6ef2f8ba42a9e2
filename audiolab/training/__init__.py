"The engine: tasks, the loop, exact resume, control, many processes."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "command_file": ["CommandFile", "ControlConfig", "ControlError", "control_command", "send"],
    "control": ["Control", "RunState", "exit_code", "stop_on_signals"],
    "events": ["Event", "History", "KINDS", "Sample", "event_line", "json_value", "read_history"],
    "gradients": ["clip_gradients"],
    "launching": ["launch", "watch_parent"],
    "precision": ["Precision"],
    "processes": ["Distributed", "DistributedError", "choose_device", "join"],
    "resuming": ["Tracked"],
    "run_folder": ["RunFolder", "set_aside"],
    "run_lock": ["RunLock", "RunLocked", "lock_owner", "owner_ended"],
    "schedules": ["Interval", "learning_rate_factor", "seed_step"],
    "task": ["Loop", "Task", "TrainingConfig", "check_task"],
    "trainer": ["NotFinite", "OutOfMemory", "Result", "Trainer"],
    "weight_average": ["WeightAverage"],
})
