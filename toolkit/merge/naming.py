"""Whether adapters name the modules of their base alike: a module under two names would count as two, each changed by a part of them."""

from collections.abc import Collection, Sequence

from toolkit.adapters import Adapter, AdapterError, aims_at, text_name

Identity = tuple[str | None, str | None]
"""name and revision of a base"""


def under_one_naming(adapters: Sequence[Adapter], identity: Identity) -> tuple[list[Adapter], list[str]]:
    """The adapters with the base's own names of modules, and notes on modules that only some of them change.

    Raises AdapterError in one line for adapters that share no module
    though their target_modules mean the same ones, and where names differ in `language_model.` and nothing says which are the base's.
    """
    layouts = {frozenset(adapter.modules): adapter for adapter in adapters}
    every = frozenset().union(*layouts)
    if any(text_name(name) != name for name in every):
        names = base_modules(identity)
        if names is None and len({text_name(name) for name in every}) < len(every):
            first, second = _parted(list(layouts.values()))
            raise AdapterError(
                f"{second.path}: names modules as {min(second.modules)!r}, {first.path} as {min(first.modules)!r}, and base "
                f"{identity[0]} is not here to say which is its own; name a folder of it with `base`"
            )
        adapters = [adapter.fitted(names or ()) for adapter in adapters]
        layouts = {frozenset(adapter.modules): adapter for adapter in adapters}
    different = list(layouts.values())
    for i, one in enumerate(different):
        for other in different[:i]:
            _refuse_strangers(other, one)
    return list(adapters), _left_out(different)


def base_modules(identity: Identity) -> Collection[str] | None:
    """Names of the modules of a base, from its configuration; None where that is not on this machine."""
    from toolkit.base import BaseError, skeleton

    name, revision = identity
    try:
        model = skeleton(f"{name}@{revision}" if revision else name) if name else None
    except BaseError:
        return None
    return None if model is None else dict(model.named_modules())


def _refuse_strangers(one: Adapter, other: Adapter) -> None:
    if one.modules.keys() & other.modules.keys():
        return
    meant = {_place(name) for name in one.modules} & {_place(name) for name in other.modules}
    if meant or any(aims_at(other.config, name) for name in one.modules) or any(aims_at(one.config, name) for name in other.modules):
        raise AdapterError(
            f"{other.path}: changes no module that {one.path} changes ({min(other.modules)!r}, {min(one.modules)!r}), though both aim "
            "at the same; are these names of two bases, or of a wrapper? save it again from the unwrapped model"
        )


def _place(name: str) -> str:
    """A module from its layer's number on, `0.self_attn.q_proj`: what stays when something is put before a name."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return name if at is None else ".".join(parts[at:])


def _left_out(layouts: Sequence[Adapter]) -> list[str]:
    """Of adapters that are laid out differently: whose target_modules name modules that they do not change, and who shares none."""
    every = sorted({name for adapter in layouts for name in adapter.modules})
    notes = []
    for adapter in layouts:
        missing = [name for name in every if name not in adapter.modules and aims_at(adapter.config, name)]
        if missing:
            notes.append(
                f"{adapter.path}: changes {len(adapter.modules)} of the {len(every)} modules that these adapters change, and not "
                f"{missing[0]!r}, at which it aims; what it leaves alone counts as unchanged"
            )
    apart = [(one, other) for i, other in enumerate(layouts) for one in layouts[:i] if not one.modules.keys() & other.modules.keys()]
    if apart:
        one, other = apart[0]
        notes.append(f"{other.path}: changes other modules than {one.path}, as both ask for; each counts as unchanged by the other")
    return notes


def _parted(layouts: Sequence[Adapter]) -> tuple[Adapter, Adapter]:
    """Two adapters that name a module differently."""
    first = layouts[0]
    return first, next((one for one in layouts[1:] if _renames(first, one)), layouts[-1])


def _renames(one: Adapter, other: Adapter) -> bool:
    return bool({text_name(name) for name in other.modules - one.modules.keys()} & {text_name(name) for name in one.modules})
