"""Whatever an operation was doing when it was killed, it was either not done or done."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from asgi_ipc._shm import layout as L
from asgi_ipc._store import fanout as fanout_module
from asgi_ipc._store import membership, slots
from asgi_ipc.names import home_of

from .explorer import Explorer
from .killing import in_child
from .programs import random_program
from .sight import Key, records
from .world import Actor

MakeExplorer = Callable[..., Explorer]


def check(explorer: Explorer) -> None:
    assert not explorer.report.problems, explorer.report
    assert explorer.report.points, "nothing was killed"


def free_bytes(explorer: Explorer) -> int:
    """Bytes that the merged tier of the messages segment has."""
    segment = explorer.world.inspected[0]
    words, extent, total = segment.words, segment.heap_start, 0
    while extent < words[L.HEAP_END]:
        granules = words[extent] & L.SIZE_MASK
        if words[extent] >> L.KIND_SHIFT == L.EXTENT_FREE:
            total += granules * L.GRANULE_BYTES
        extent += granules * L.GRANULE_WORDS
    return total


def members(explorer: Explorer) -> list[Key]:
    return [key for key in explorer.look().state if key[0] == "member"]


def total(explorer: Explorer, what: str) -> int:
    count = explorer.look().state["total", what]
    assert isinstance(count, int)
    return count


def held_of(explorer: Explorer, name: str) -> object:
    """Return how many messages of a name lie in an inbox and count."""
    return explorer.look().state.get(("held", home_of(name), name), 0)


@pytest.mark.parametrize("seed", [2, 3])
def test_a_random_program_is_done_or_not_done(make_explorer: MakeExplorer, seed: int) -> None:
    """A kill at any step of a random program leaves the state before or after an operation."""
    explorer = make_explorer()
    for op in random_program(explorer.world, seed, 18):
        explorer.explore(op)
    check(explorer)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_random_programs_are_done_or_not_done(make_explorer: MakeExplorer, seed: int) -> None:
    """A kill at any step, and a second one during the replay, leave the state before or after."""
    explorer = make_explorer(doubles=3)
    for op in random_program(explorer.world, seed, 80):
        explorer.explore(op)
    check(explorer)


def test_messages_are_queued_and_taken_whole(make_explorer: MakeExplorer) -> None:
    """Sends and receives of every kind of name and size are done or not done."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors
    explorer.explore(world.send(one, "normal", 20))
    explorer.explore(world.send(one, "normal", 300))
    explorer.explore(world.send(other, "normal", 5000))
    explorer.explore(world.send(other, "reply?one", 20))
    explorer.explore(world.take(one, ["nothing", "normal"]))
    explorer.explore(world.take_one(other, "normal"))
    explorer.explore(world.take(other, ["reply?one", "normal"]))
    explorer.explore(world.take(other, ["normal"]))
    explorer.explore(world.send(one, "normal", 20))  # into memory that was used before
    explorer.explore(world.send(one, "normal", 20, capacity=1))
    assert total(explorer, "full") == 1
    check(explorer)


def test_what_no_quick_list_has_room_for_is_taken_whole(
    make_explorer: MakeExplorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that is too large for them, and one of a class whose list is full: the short way."""
    explorer = make_explorer(message_bytes=4 << 20)
    world = explorer.world
    one, other = world.actors
    granules = (8 * L.MSG_DATA + 17_000) // L.GRANULE_BYTES + 1
    limit = L.quick_limit(L.size_class(L.round_to_class(granules)))
    explorer.run(world.send(one, "large", 250_000))
    explorer.run(world.take(other, ["home!"]))  # so that it owns it, and the short way is open
    explorer.run(world.send(other, "home!x", 260_000))
    for _ in range(limit + 1):
        explorer.run(world.send(one, "many", 17_000))
    heads: list[int] = []
    for actor in world.actors:
        short_way = actor.messages._pop_head

        def noted(record: int, extent: int, short_way: Any = short_way) -> None:
            heads.append(extent)
            short_way(record, extent)

        monkeypatch.setattr(actor.messages, "_pop_head", noted)
    explorer.explore(world.take_one(one, "large"))
    explorer.explore(world.take_one(other, "home!x"))
    assert len(set(heads)) == 2
    for _ in range(limit):
        explorer.run(world.take_one(one, "many"))
    assert len(set(heads)) == 2
    explorer.explore(world.take_one(one, "many"))
    assert len(set(heads)) == 3
    check(explorer)


def test_who_polls_owns_the_home(make_explorer: MakeExplorer) -> None:
    """If nobody does, or the owner is dead: in the commit that takes, or in one of its own."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors

    def owner_of(home: str) -> int:
        words = one.messages_segment.words
        return int(words[one.messages.records.find(home) + L.CH_OWNER])

    def own(actor: Actor) -> int:
        return actor.messages.slots.token()

    explorer.explore(world.take(one, ["a!", "b!"]))
    assert owner_of("a!") == owner_of("b!") == own(one)
    explorer.run(world.send(one, "a!x"))
    explorer.explore(world.take(other, ["a!"]))
    explorer.explore(world.take(other, ["a!"]))
    assert owner_of("a!") == own(one)
    explorer.run(world.send(one, "c!x"))
    explorer.explore(world.take_one(other, "c!x"))
    assert owner_of("c!") == 0  # the short way leaves it to the other one
    explorer.explore(world.take(other, ["c!"], wanted=["c!x"]))
    assert owner_of("c!") == own(other)
    explorer.run(world.claim(one))
    (loop,) = world.loops
    explorer.run(world.wait(loop, ["d!"]))
    explorer.run(world.send(other, "d!x"))
    assert owner_of("d!") == loop.process
    loop.dead = True
    world.dead.add(loop.process)
    explorer.explore(world.take(other, ["d!"], wanted=["d!x"]))
    assert owner_of("d!") == own(other)
    check(explorer)


def test_several_messages_are_queued_at_once(make_explorer: MakeExplorer) -> None:
    """Messages that are sent together are all queued, and rung for, or none of them is."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors
    for actor, homes in ((one, ["c"]), (other, ["c", "home!"])):
        explorer.run(world.claim(actor))
        explorer.run(world.wait(world.loops[-1], homes))
    explorer.explore(world.send_many(one, ["c", "d", "home!x", "c", "home!x"]))
    assert [loop.rung for loop in world.loops] == [True, True]
    explorer.explore(world.send_many(other, ["d", "c", "e"], capacity=2))
    assert total(explorer, "full") == 1
    check(explorer)


def test_process_specific_messages_are_counted_once(make_explorer: MakeExplorer) -> None:
    """Draining a process-specific home and crediting its leaves is done or not done."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors
    explorer.explore(world.send(one, "home!x"))
    explorer.explore(world.send(one, "home!x", capacity=2))
    explorer.run(world.send(one, "home!x", capacity=2))
    explorer.run(world.send(one, "home!y"))
    explorer.run(world.send(other, "home!y", by_name=False))
    explorer.explore(world.take(other, ["home!"], limit=64, wanted=["home!x"]))
    assert held_of(explorer, "home!x") == 1 and held_of(explorer, "home!y") == 1
    world.read(other, 1)
    explorer.explore(world.settle(other))
    assert held_of(explorer, "home!x") == 0 and held_of(explorer, "home!y") == 1
    for _ in range(2):
        explorer.run(world.send(one, "home!x"))
    world.read(other, 1)
    explorer.explore(world.take(other, ["home!"], limit=64, settles=True))
    assert held_of(explorer, "home!x") == 2 and held_of(explorer, "home!y") == 0
    explorer.run(world.send(other, "home!y"))
    explorer.explore(world.take(one, ["home!"], limit=64, wanted=None))
    assert held_of(explorer, "home!x") == 2 and held_of(explorer, "home!y") == 0
    check(explorer)


def test_what_a_process_held_is_void_when_it_is_gone(make_explorer: MakeExplorer) -> None:
    """When it is dead, when it has all expired, or when another drains: done or not done."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors
    for name in ("home!x", "home!x", "home!y"):
        explorer.run(world.send(one, name, expiry_s=10.0, capacity=2))
    explorer.run(world.claim(other))
    explorer.explore(world.wait(world.loops[0], ["home!"], limit=64))
    explorer.run(world.send(one, "home!x", expiry_s=10.0, capacity=2))
    assert held_of(explorer, "home!x") == 2 and total(explorer, "full") == 1
    world.dead.add(world.loops[0].process)
    explorer.explore(world.send(one, "home!x", expiry_s=10.0, capacity=2))  # writes it off
    assert held_of(explorer, "home!x") == 0 and held_of(explorer, "home!y") == 0
    explorer.explore(world.take(other, ["home!"], limit=64))
    assert held_of(explorer, "home!x") == 1
    explorer.run(world.send(one, "home!y", expiry_s=10.0))
    explorer.explore(world.take(one, ["home!"], limit=64))
    assert held_of(explorer, "home!x") == 1 and held_of(explorer, "home!y") == 1  # it is its own
    world.pass_time(11)
    assert held_of(explorer, "home!y") == 0
    explorer.explore(world.send(one, "home!y", capacity=1))
    check(explorer)


def test_waiting_loops_are_rung_before_the_commit(make_explorer: MakeExplorer) -> None:
    """Parking, ringing, looking, passing a ring on and giving a slot back are done or not."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors
    explorer.explore(world.claim(one))
    explorer.run(world.claim(other))
    first, second = world.loops
    explorer.explore(world.wait(first, ["c", "d", "home!"]))
    explorer.explore(world.wait(second, ["c", "d"]))
    explorer.explore(world.send(other, "c"))
    explorer.explore(world.send(other, "d"))
    awake = first if first.rung else second
    explorer.explore(world.look(awake))
    explorer.explore(world.wait(awake, list(awake.homes)))  # passes the ring for "d" on
    assert awake.homes == []
    explorer.run(world.take(one, ["c", "d"]))
    explorer.run(world.take(one, ["c", "d"]))
    for loop in (first, second):
        explorer.run(world.wait(loop, ["c", "d", "e"]))
    explorer.run(world.send(other, "d"))
    awake, asleep = (first, second) if first.rung else (second, first)
    explorer.explore(world.withdraw(awake))
    assert asleep.rung
    explorer.explore(world.wait(asleep, list(asleep.homes), others_in=["d"]))
    assert ("parked", "d", asleep.slot) in explorer.look().state
    explorer.explore(world.park_one(awake, "d"))
    explorer.run(world.wait(asleep, ["c", "d"], others_in=["d"]))
    explorer.run(world.send(other, "c"))
    explorer.explore(world.wait(asleep, ["c", "d"], others_in=["d"]))
    assert not [key for key in explorer.look().state if key[:2] == ("parked", "c")]
    explorer.explore(world.send(one, "home!x"))
    explorer.explore(world.release(second))
    explorer.explore(world.release(first))
    check(explorer)


def test_a_dead_loop_is_reaped_and_others_are_rung(make_explorer: MakeExplorer) -> None:
    """Reaping the slot of a dead process can be broken off and begun again."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors
    for actor, homes in ((one, ["c", "d"]), (other, ["c", "e"]), (other, ["d"])):
        explorer.run(world.claim(actor))
        explorer.run(world.wait(world.loops[-1], homes))
    for loop in world.loops[:2]:
        loop.dead = True
    explorer.explore(world.send(one, "c"))
    assert len(world.loops) == 1
    explorer.explore(world.send(one, "d"))
    assert world.loops[0].rung
    check(explorer)


def test_what_a_dead_process_leaves_is_dropped_by_the_next_one(
    make_explorer: MakeExplorer,
) -> None:
    """Slot, parked bits, memberships, owner: who is killed in reaping is gone on with."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors
    for actor, homes in ((one, ["c", "home!"]), (other, ["c"])):
        explorer.run(world.claim(actor))
        explorer.explore(world.wait(world.loops[-1], homes))
    dead, living = world.loops
    for group, name in (("g", "home!x"), ("g", "home!y"), ("h", "home!x"), ("g", "other!x")):
        explorer.run(world.add(other, group, name))
    explorer.run(world.send(other, "c"))
    if dead.rung:
        explorer.run(world.take(one, ["c"]))
        explorer.run(world.wait(dead, ["c", "home!"]))
    dead.dead = True
    explorer.explore(world.reap(other))
    assert world.loops == [living]
    explorer.explore(world.send_group(other, "g"))  # leaves the dead home out
    images = explorer._save()

    explorer.explore(world.drop_dead_homes(other, ("home!", "other!")))
    step, killed = 0, True
    while killed:
        step += 1
        explorer._restore(images)
        world.ledger.clear()
        drop = world.drop_dead_homes(one, ("home!", "other!"))
        killed = in_child(partial(explorer._run_armed, drop, step), world.ledger)
        explorer.run(world.drop_dead_homes(other, ("home!",)))
        explorer.run(world.add(other, "g", "home!z"))
        explorer.run(world.drop_dead_homes(other, ("home!",)))  # not again of who came then
        found = {key[3] for key in explorer.look().state if key[0] == "member"}
        assert found == {"other!x", "home!z"}, f"killed at step {step}"
    assert step > 30
    check(explorer)


def test_groups_change_whole(make_explorer: MakeExplorer) -> None:
    """Joining, renewing, leaving with and without a tombstone, expiring: done or not done."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors
    explorer.explore(world.add(one, "g", "home!x"))
    explorer.explore(world.add(one, "g", "home!x", 100.0))
    explorer.explore(world.add(other, "g", "home!y"))
    explorer.explore(world.add(other, "g", "normal"))
    explorer.explore(world.discard(one, "g", "home!x", tombstone_s=60.0))
    explorer.explore(world.members_at(other, "g", "home!", 1))
    explorer.explore(world.add(one, "g", "home!x"))
    explorer.explore(world.discard(one, "g", "home!y", tombstone_s=0.0))
    explorer.explore(world.discard(one, "g", "home!x", tombstone_s=5.0))
    world.pass_time(100)
    for number in range(8):  # the clock hand comes by
        explorer.run(world.add(one, "h", f"other!{number}", 30.0))
    explorer.explore(world.drop_home(other, "other!"))
    explorer.explore(world.discard(other, "g", "normal"))  # the last one: the group goes
    assert not members(explorer)
    check(explorer)


def test_ordinary_changes_of_groups_are_whole(
    make_explorer: MakeExplorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joining, renewing and leaving beside others of a home, the short way: done or not done."""
    explorer = make_explorer(doubles=2)
    world = explorer.world
    one = world.actors[0]
    done: list[str] = []
    for way in ("join", "renew", "leave"):
        short_way = getattr(membership, way)

        def noted(*arguments: Any, way: str = way, short_way: Any = short_way) -> Any:
            result = short_way(*arguments)
            done.append(way if result and result != (0, 0) else f"no {way}")
            return result

        monkeypatch.setattr(membership, way, noted)
    explorer.run(world.add(one, "g", "home!first"))
    for name in "abcd":
        explorer.explore(world.add(one, "g", f"home!{name}"))
    explorer.explore(world.add(one, "g", "home!b", 100.0))
    assert done == ["no join", *["join"] * 4, "renew"]  # at first there was no memory in stock
    done.clear()
    explorer.explore(world.discard(one, "g", "home!b", tombstone_s=0.0))  # from the middle
    explorer.explore(world.discard(one, "g", "home!d", tombstone_s=0.0))  # the newest
    explorer.explore(world.discard(one, "g", "home!first", tombstone_s=0.0))  # the oldest
    explorer.explore(world.discard(one, "g", "home!a", tombstone_s=60.0))
    explorer.explore(world.add(one, "g", "home!a"))  # beside its tombstone, in used memory
    assert done == ["leave"] * 4 + ["join"]
    check(explorer)


def test_group_messages_are_sent_to_all_or_none(make_explorer: MakeExplorer) -> None:
    """A group message reaches every home and channel of one plan, or none of them."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors
    explorer.run(world.claim(other))
    explorer.run(world.wait(world.loops[0], ["home!", "c1"], limit=64))
    for channel in ("home!x", "home!y", "c1", "c2", "other!z"):
        explorer.run(world.add(one, "g", channel))
    explorer.explore(world.send_group(one, "g", 300, exclude="home!y"))
    explorer.explore(world.discard(one, "g", "home!x"))
    explorer.explore(world.look(world.loops[0]))
    explorer.explore(world.wait(world.loops[0], ["home!", "c1"], limit=64))
    explorer.explore(world.take(one, ["c1"]))
    explorer.explore(world.take(one, ["other!"], limit=64))
    explorer.explore(world.take(one, ["c2"]))  # the last one: the body goes
    explorer.run(world.send(one, "c1"))
    explorer.explore(world.send_group(one, "g", 20, capacity=1))
    assert total(explorer, "dropped") == 1
    check(explorer)


def test_an_ordinary_group_message_is_sent_to_all_or_none(
    make_explorer: MakeExplorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a straight line, to loops that wait, to one that is behind, and to one that is dead."""
    explorer = make_explorer(doubles=2)
    world = explorer.world
    one, other = world.actors
    fanout = one.messages._fanout
    send_straight = fanout._send_straight
    straight: list[bool] = []

    def noted(message: fanout_module.GroupMessage, now: int) -> list[str] | None:
        dead = send_straight(message, now)
        straight.append(dead is not None)
        return dead

    monkeypatch.setattr(fanout, "_send_straight", noted)
    for channel in ("a!x", "a!y", "b!z"):
        explorer.run(world.add(one, "g", channel))
    for _ in range(3):
        explorer.run(world.send_group(one, "g", 100))
    for home in ("a!", "b!"):
        for _ in range(3):
            explorer.run(world.take(other, [home], limit=64))
    for actor, home in ((one, "a!"), (other, "b!")):
        explorer.run(world.claim(actor))
        explorer.run(world.wait(world.loops[-1], [home], limit=64))
    straight.clear()
    explorer.explore(world.send_group(one, "g", 100))
    assert [loop.rung for loop in world.loops] == [True, True]
    explorer.run(world.take(other, ["a!"], limit=64))
    explorer.explore(world.send_group(one, "g", 100, exclude="a!x"))  # b! is behind
    assert straight == [True, True]
    explorer.explore(world.send_group(one, "g", 20))  # of another size: cut from the heap
    dead = world.loops[1]
    while ("parked", "b!", dead.slot) not in explorer.look().state:
        explorer.run(world.wait(dead, ["b!"], limit=64))
    dead.dead = True
    explorer.explore(world.send_group(one, "g", 100))  # to one that is parked, and dead
    assert straight[-1]
    assert dead not in world.loops
    check(explorer)


def test_a_batch_may_stop_between_two_plans(
    make_explorer: MakeExplorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group message to more channels than one plan holds reaches some of them, each whole."""
    monkeypatch.setattr(fanout_module, "_SLICE", 2)
    explorer = make_explorer()
    world = explorer.world
    for number in range(12):
        explorer.run(world.add(world.actors[0], "g", f"c{number}"))
        explorer.run(world.send(world.actors[0], f"c{number}"))
    explorer.explore(world.send_group(world.actors[0], "g", 100, in_batches=True))
    assert explorer.report.between, "it was one plan"
    check(explorer)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_batch_may_stop_between_two_plans(make_explorer: MakeExplorer) -> None:
    """The same with as many channels as it really takes."""
    explorer = make_explorer(message_bytes=1 << 18, group_bytes=1 << 18)
    world = explorer.world
    for number in range(120):
        explorer.run(world.add(world.actors[0], "g", f"c{number}"))
        explorer.run(world.send(world.actors[0], f"c{number}"))
    explorer.explore(world.send_group(world.actors[0], "g", 100, in_batches=True))
    assert explorer.report.between, "it was one plan"
    check(explorer)


def test_leaving_many_channels_may_stop_between_two_plans(
    make_explorer: MakeExplorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receive that was parked on more channels than one plan holds keeps its message."""
    monkeypatch.setattr(slots, "_PLAN_ROOM", 10)
    explorer = make_explorer()
    world = explorer.world
    explorer.run(world.claim(world.actors[0]))
    loop = world.loops[0]
    for count in range(2, 24, 3):
        homes = [f"c{number}" for number in range(count)]
        explorer.run(world.wait(loop, homes))
        explorer.run(world.send(world.actors[1], homes[-1]))
        explore = explorer.explore if count > 20 else explorer.run
        explore(world.wait(loop, homes))
        assert not loop.homes
    check(explorer)


def test_abandoned_messages_are_swept_whole(make_explorer: MakeExplorer) -> None:
    """What has expired and what is idle is dropped by anybody's sends, each thing whole."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors
    for number in range(6):
        explorer.run(world.send(one, f"abandoned?{number}", 100, expiry_s=1.0))
    explorer.run(world.send(one, "home!x", expiry_s=1.0))
    explorer.run(world.take(one, ["home!"], limit=64))  # into an inbox, never credited
    world.pass_time(2)
    for number in range(3):
        explorer.explore(world.send(other, f"new{number}"))
    for number in range(3, 6):
        world.pass_time(70)
        for _ in range(20):
            explorer.run(world.send(other, "busy"))
        explorer.explore(world.send(other, f"new{number}"))
    names = {name for _, _, _, name in records(world.inspected[0])}
    assert names == {"busy", *(f"new{number}" for number in range(6))}
    check(explorer)


def test_full_memory_is_tidied_whole(make_explorer: MakeExplorer) -> None:
    """Looking for room when the memory is full, found or not, is done or not done."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors
    for _ in range(8):
        explorer.run(world.send(one, "small", 700))
    explorer.run(world.send(one, "large?", 17000, expiry_s=1.0))
    explorer.run(world.send(one, "large", 9000))
    for _ in range(8):
        explorer.run(world.take(other, ["small"]))  # to a quick list
    explorer.explore(world.send(other, "large", 9000))  # there is room among the free
    world.pass_time(0.5)
    before = free_bytes(explorer)
    explorer.explore(world.send(other, "large", 15000))  # there is none: consolidate
    assert total(explorer, "memory full") == 1
    assert free_bytes(explorer) > before + 8 * 700, "the quick lists were not emptied"
    world.pass_time(2)
    explorer.explore(world.send(other, "large", 15000))  # expired messages make way
    assert total(explorer, "memory full") == 1
    check(explorer)


def test_the_heap_grows_whole(make_explorer: MakeExplorer) -> None:
    """A message larger than the memory backed so far is sent, growth included, or is not."""
    explorer = make_explorer(message_bytes=6 << 20)
    world = explorer.world
    explorer.explore(world.send(world.actors[0], "c", 100))
    explorer.explore(world.send(world.actors[0], "c", 3 << 19))
    explorer.explore(world.send(world.actors[1], "d", 2 << 20))
    explorer.explore(world.send(world.actors[1], "d", 4 << 20))  # no room for that
    explorer.explore(world.take(world.actors[1], ["c"]))
    explorer.explore(world.take(world.actors[1], ["c"]))
    assert total(explorer, "memory full") == 1
    check(explorer)


def test_full_group_memory_refuses_whole(make_explorer: MakeExplorer) -> None:
    """A member for whom there is no room is refused, and expired ones make way for others."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors
    number = 0
    while number < 1000:
        explorer.run(world.add(one, "g", f"home!{number:090}", 50.0))
        if len(members(explorer)) == number:
            break
        number += 1
    assert 50 < number < 1000
    explorer.explore(world.add(other, "g", "home!another"))
    check(explorer)


def test_flush_is_one_step(make_explorer: MakeExplorer) -> None:
    """A flush drops every message or none, every group or none, and wakes who waits."""
    explorer = make_explorer()
    world = explorer.world
    one, other = world.actors
    for actor in world.actors:
        explorer.run(world.claim(actor))
        explorer.run(world.wait(world.loops[-1], ["c", "home!"]))
    world.loops[1].dead = True
    for channel in ("c", "d", "d", "home!x"):
        explorer.run(world.send(one, channel, 300))
    for channel in ("c", "d", "home!x"):
        explorer.run(world.add(one, "g", channel))
    explorer.run(world.send_group(one, "g"))
    explorer.explore(world.flush_messages(other))
    explorer.explore(world.flush_groups(other))
    assert total(explorer, "flushed") == 7
    explorer.explore(world.send(one, "c"))
    explorer.explore(world.add(one, "g", "c"))
    check(explorer)
