"The engine: tasks, the loop, exact resume, control, many processes."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "control": ["Control", "ControlConfig", "ControlError", "RunLock", "RunLocked",
        "control_command", "exit_code", "send", "stop_on_signals"],
    "processes": ["Distributed", "DistributedError", "choose_device", "join", "launch",
        "watch_parent"],
    "resuming": ["Tracked"],
    "run_folder": ["Event", "KINDS", "RunFolder", "Sample", "event_line", "read_history",
        "set_aside"],
    "schedules": ["Interval", "Precision", "WeightAverage", "clip_gradients",
        "learning_rate_factor", "seed_step"],
    "task": ["Loop", "Task", "TrainingConfig", "check_task"],
    "trainer": ["NotFinite", "OutOfMemory", "Result", "Trainer"],
})
