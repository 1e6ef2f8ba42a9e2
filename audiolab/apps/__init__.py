"The program `audiolab`."
import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    "commands": ["COMMANDS", "Command", "EXAMPLES", "FLAGS_OF_ALL", "GROUPS", "UsageError",
        "find_command", "help_text"],
    "file_commands": ["HistoryConfig", "InspectConfig", "NO_CHECKPOINT", "NO_DIGESTS",
        "VerifyConfig", "checkpoints_below", "history_command", "inspect_command",
        "verify_command"],
    "program": ["main", "printable"],
})
