"""Bring adapters to one naming of modules: a module under two names would count as two modules,
each changed by some of the adapters.
"""

from collections.abc import Collection, Mapping, Sequence

from toolkit.model.adapters import (
    SINGLE_EXPERT,
    Adapter,
    AdapterError,
    aims_at,
    no_such_layer,
    text_name,
    without_tensors,
)

Identity = tuple[str | None, str | None]
"""name and revision of a base"""


def under_one_naming(
    adapters: Sequence[Adapter], identity: Identity
) -> tuple[list[Adapter], list[str]]:
    """The adapters with the base's own names of modules, and notes on modules that only some of
    them change, or that nobody could check.

    Raises AdapterError in one line for a module that the base has not, for adapters that share no
    module though their target_modules mean the same ones, and where names differ in
    `language_model.` and nothing says which are the base's.
    """
    adapters, layers = _named_by_base(adapters, identity)
    checked = layers is not None
    layouts = list({frozenset(adapter.modules): adapter for adapter in adapters}.values())
    every = frozenset[str]().union(*(adapter.modules for adapter in layouts))
    if not checked and len({text_name(name) for name in every}) < len(every):
        first, second = _parted(layouts)
        raise AdapterError(
            f"{second.path}: names modules as {min(second.modules)!r}, {first.path} as "
            f"{min(first.modules)!r}, and base "
            f"{identity[0]} is not here to say which is its own; name a folder of it with `base`"
        )
    for i, layout in enumerate(layouts):
        for other in layouts[:i]:
            _refuse_strangers(other, layout)
    reason = (
        f"the configuration of {identity[0]} is not on this machine"
        if identity[0]
        else "the adapters do not say their base"
    )
    unchecked = (
        []
        if checked
        else [f"names of modules were not checked: {reason}; name a folder of the base with `base`"]
    )
    return adapters, [*_left_out(layouts, layers or {}), *unchecked]


def _named_by_base(
    adapters: Sequence[Adapter], identity: Identity
) -> tuple[list[Adapter], Mapping[str, bool] | None]:
    """The adapters under the names that their base has, and its modules where it is here to tell.
    Raises AdapterError for a name that it has not.
    """
    refusal = None
    for whole in (
        False,
        True,
    ):  # the model of text that ftk and peft take, then that of text and images
        layers = _modules_of(identity, whole)
        if layers is None:
            continue
        fitted = [adapter.fitted(layers) for adapter in adapters]
        stray = next(
            (
                (adapter, module)
                for adapter in fitted
                for module in adapter.modules
                if not _is_there(module, layers)
            ),
            None,
        )
        if stray is None:
            return fitted, layers
        refusal = refusal or AdapterError(
            f"{stray[0].path}: {no_such_layer(stray[1], str(identity[0]))}"
        )
    if refusal:
        raise refusal
    return list(adapters), None


def _modules_of(identity: Identity, whole: bool) -> Mapping[str, bool] | None:
    from toolkit.model.base import named_modules

    name, revision = identity
    return named_modules(f"{name}@{revision}" if revision else name, whole) if name else None


def layers_of_base(identity: Identity, modules: Collection[str]) -> list[str]:
    """All layers of the base that has these modules; empty where it is not here to tell."""
    for whole in (False, True):
        layers = _modules_of(identity, whole)
        if layers is not None and all(_is_there(name, layers) for name in modules):
            return [name for name, matrix in layers.items() if matrix]
    return []


def _is_there(module: str, layers: Mapping[str, bool]) -> bool:
    """Whether a base has a layer to change, or the experts that one of them is among."""
    single = SINGLE_EXPERT.match(module)
    return layers.get(module, False) or (single is not None and single[1] in layers)


def _refuse_strangers(first: Adapter, other: Adapter) -> None:
    if first.modules.keys() & other.modules.keys():
        return
    meant = {_place(name) for name in first.modules} & {_place(name) for name in other.modules}
    if (
        meant
        or any(aims_at(other.config, name) for name in first.modules)
        or any(aims_at(first.config, name) for name in other.modules)
    ):
        raise AdapterError(
            f"{other.path}: changes no module that {first.path} changes "
            f"({min(other.modules)!r}, {min(first.modules)!r}), though both aim "
            "at the same; are these names of two bases, or of a wrapper? save it again "
            "from the unwrapped model"
        )


def _place(name: str) -> str:
    """A module from its layer's number on, `0.self_attn.q_proj`: what stays when something is put
    before a name.
    """
    parts = name.split(".")
    start = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    return name if start is None else ".".join(parts[start:])


def _left_out(layouts: Sequence[Adapter], layers: Mapping[str, bool]) -> list[str]:
    """Whose target_modules name modules of the others, or of the base, that they do not change; and
    who shares none. layers: what the base has, where it is here to tell.
    """
    every = sorted({name for adapter in layouts for name in adapter.modules})
    notes = []
    for adapter in layouts:
        missing = [
            name for name in every if name not in adapter.modules and aims_at(adapter.config, name)
        ]
        if missing:
            notes.append(
                f"{adapter.path}: changes {len(adapter.modules)} of the {len(every)} "
                "modules that these adapters change, and not "
                f"{missing[0]!r}, at which it aims; what it leaves alone counts as unchanged"
            )
        elif lacking := _lacking(adapter, layers):
            notes.append(
                f"{adapter.path}: has no tensors for {lacking}, at which it aims; what it leaves "
                "alone counts as unchanged"
            )
    disjoint = [
        (earlier, other)
        for i, other in enumerate(layouts)
        for earlier in layouts[:i]
        if not earlier.modules.keys() & other.modules.keys()
    ]
    if disjoint:
        earlier, other = disjoint[0]
        notes.append(
            f"{other.path}: changes other modules than {earlier.path}, as both ask for; each "
            "counts as unchanged by the other"
        )
    return notes


def _lacking(adapter: Adapter, layers_of_base: Mapping[str, bool]) -> str:
    """What its target_modules mean by name, and none of its tensors is of: modules of the base, or
    where that is not here, entries of the list.
    """
    if adapter.config.get("target_modules") == "all-linear":
        return ""
    layers = [name for name, matrix in layers_of_base.items() if matrix]
    missing = without_tensors(adapter.config, adapter.modules, layers)
    if not missing or not layers_of_base:
        return f"{missing[0]!r} of target_modules" if missing else ""
    others = f" and {len(missing) - 1} more modules" if len(missing) > 1 else ""
    return f"{missing[0]!r}{others}"


def _parted(layouts: Sequence[Adapter]) -> tuple[Adapter, Adapter]:
    """Two adapters that name a module differently."""
    first = layouts[0]
    return first, next((layout for layout in layouts[1:] if _renames(first, layout)), layouts[-1])


def _renames(adapter: Adapter, other: Adapter) -> bool:
    return bool(
        {text_name(name) for name in other.modules - adapter.modules.keys()}
        & {text_name(name) for name in adapter.modules}
    )
