"""The engine's SQL, written once for both databases.

A list is one JSON parameter, so that each statement has one text, and one prepared plan, for any batch size.
Placeholders: `?` is a parameter, `{now}` the database's clock in microseconds, `{each}` the rows of a JSON array of
arrays as column `value`, `{among}` a test against their first elements that uses an index, `{skip}` the clause that
skips locked rows, `{of}` the flow of an address, `{unread}` the source of unreadable messages; `{entry}`, `{letter}`,
`{object}` and `{reply}` are the columns that identify a row of the inbox, a dead letter, an object and a reply.
"""

from dataclasses import dataclass, fields

from flowkit.message import BATCH_BYTES, UNREAD
from flowkit.ports import CANDIDATE, REFUSED
from flowkit.store.tables import RETENTION

ENVELOPE = "source, id, channel, body, type, key, time, correlation, causation, headers"


def _inherited(table: str) -> str:
    """Return the SQL test whether the new name of a flow has its own copy of a message of the flow."""
    return f"""(EXISTS (SELECT 1 FROM flowkit_inbox AS box
                WHERE box.flow = ? AND box.source = {table}.source AND box.id = {table}.id)
        OR ({table}.source, {table}.id) IN (SELECT source, id FROM flowkit_messages WHERE flow IN (?, ?)))"""


ENDED = """(SELECT count(*) FROM flowkit_inbox AS box WHERE box.flow = ? AND box.source = flowkit_messages.source
            AND box.id = flowkit_messages.id AND box.state <> 0)"""
"""SQL: whether a message of a flow has ended. A remaining copy of it does not count."""

LONGEST = f"""SELECT coalesce(max(CAST(value AS bigint)), 0) FROM flowkit_meta
             WHERE substr(name, 1, length('{RETENTION}')) = '{RETENTION}'"""
"""SQL: the longest recorded App(retention=), in microseconds; 0 if there is none."""


@dataclass(frozen=True)
class Statements:
    """Every statement, rendered for one database."""

    look: str = """
        SELECT box.flow, box.source, box.id, box.state, box.generation, box.attempts, box.suspect, box.digest,
               box.changed
        FROM {each} JOIN flowkit_inbox AS box
        ON box.flow = value ->> 0 AND box.source = value ->> 1 AND box.id = value ->> 2"""
    # One claim for all generations: it takes a missing row, or an open row that expects no later generation.
    claim: str = """
        INSERT INTO flowkit_inbox AS box (flow, source, id, state, generation, attempts, suspect, changed, digest)
        SELECT value ->> 0, value ->> 1, value ->> 2, 1,
               CAST(value ->> 3 AS integer), CAST(value ->> 4 AS integer), 0, {now}, value ->> 5 FROM {each} WHERE true
        ON CONFLICT (flow, source, id) DO UPDATE
        SET state = 1, generation = excluded.generation, changed = excluded.changed,
            digest = CASE WHEN excluded.digest = '' THEN box.digest ELSE excluded.digest END
        WHERE box.state = 0 AND box.generation <= excluded.generation
        RETURNING flow, source, id, attempts, suspect, changed"""
    set_inbox: str = """
        INSERT INTO flowkit_inbox AS box (state, generation, attempts, suspect, flow, source, id, changed)
        VALUES (?, ?, ?, ?, ?, ?, ?, {now})
        ON CONFLICT (flow, source, id) DO UPDATE SET state = excluded.state, generation = excluded.generation,
        attempts = excluded.attempts, suspect = excluded.suspect, changed = excluded.changed,
        venture = CASE WHEN excluded.suspect = 1 THEN box.venture END"""
    # A worker that took over the suspect since has counted the recorded run already.
    charge: str = """
        INSERT INTO flowkit_inbox AS box (attempts, flow, source, id, state, generation, suspect, changed)
        VALUES (?, ?, ?, ?, 0, 0, 1, {now})
        ON CONFLICT (flow, source, id) DO UPDATE SET suspect = 1, attempts = box.attempts
        + CASE WHEN box.venture = ? THEN 1 WHEN box.venture IS NULL THEN excluded.attempts ELSE 0 END,
        venture = nullif(box.venture, ?) WHERE box.state = 0"""
    solo: str = """
        SELECT venture FROM flowkit_inbox
        WHERE flow = ? AND source = ? AND id = ? AND state = 0 AND venture IS NOT NULL"""
    begin_solo: str = """
        INSERT INTO flowkit_inbox AS box (flow, source, id, generation, attempts, venture, state, suspect, changed)
        VALUES (?, ?, ?, ?, ?, ?, 0, 1, {now})
        ON CONFLICT (flow, source, id) DO UPDATE SET suspect = 1, venture = excluded.venture,
        attempts = box.attempts + CASE WHEN box.venture = ? THEN 1 ELSE 0 END
        WHERE box.state = 0 AND box.generation <= excluded.generation"""
    end_solo: str = """
        UPDATE flowkit_inbox SET venture = NULL WHERE flow = ? AND source = ? AND id = ? AND venture = ?"""
    bury: str = f"""
        INSERT INTO flowkit_dead (letter, flow, {ENVELOPE}, generation, attempts, reason, error, stack, version, died)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {{now}})"""
    exhume: str = f"""
        DELETE FROM flowkit_dead WHERE letter IN (SELECT value ->> 0 FROM {{each}})
        RETURNING letter, flow, {ENVELOPE}, generation, attempts"""
    subscribers: str = """
        SELECT channel, flow FROM flowkit_subscriptions WHERE channel IN (SELECT value ->> 0 FROM {each})
        ORDER BY flow"""
    subscribe: str = """
        INSERT INTO flowkit_subscriptions (flow, channel, seen) VALUES (?, ?, {now})
        ON CONFLICT (flow) DO UPDATE SET channel = excluded.channel, seen = excluded.seen"""
    subscribed: str = "SELECT flow, channel, {now} - seen FROM flowkit_subscriptions WHERE channel <> '' ORDER BY flow"
    unsubscribe: str = "DELETE FROM flowkit_subscriptions WHERE flow IN (?, ?)"
    # `seen` moves along: no program with the new name has started yet.
    rename_subscription: str = """
        UPDATE flowkit_subscriptions SET flow = ?
        WHERE flow = ? AND NOT EXISTS (SELECT 1 FROM flowkit_subscriptions WHERE flow = ?)"""
    # Every transaction that sends or ends messages counts. This lock stops them until the transaction ends.
    hold_counters: str = "{hold}"
    take_counters: str = """
        DELETE FROM flowkit_counters WHERE flow = ?
        RETURNING accepted, applied, dead, discarded, expired, unidentified, reused"""
    take_messages: str = f"""
        DELETE FROM flowkit_messages WHERE flow IN (?, ?)
        RETURNING source, id, {ENDED}, CASE WHEN due > {{now}} THEN worker END"""
    take_dead: str = "DELETE FROM flowkit_dead WHERE flow = ? RETURNING letter"
    forget_all: str = "DELETE FROM flowkit_inbox WHERE flow = ?"
    leave_all_alone: str = "DELETE FROM flowkit_directions WHERE name = ?"
    take_inherited_messages: str = f"""
        DELETE FROM flowkit_messages WHERE flow IN (?, ?) AND {_inherited("flowkit_messages")}
        RETURNING source, id, {ENDED}"""
    take_inherited_dead: str = f"""
        DELETE FROM flowkit_dead WHERE flow = ? AND {_inherited("flowkit_dead")} RETURNING letter"""
    forget_inherited: str = f"DELETE FROM flowkit_inbox WHERE flow = ? AND {_inherited('flowkit_inbox')}"
    rename_messages: str = """
        UPDATE flowkit_messages SET flow = ?, due = CASE WHEN worker IS NULL THEN due ELSE {now} END, worker = NULL
        WHERE flow IN (?, ?) RETURNING source, id, 0"""
    rename_dead: str = "UPDATE flowkit_dead SET flow = ? WHERE flow = ? RETURNING letter"
    rename_inbox: str = "UPDATE flowkit_inbox SET flow = ? WHERE flow = ?"
    rename_directions: str = """
        UPDATE flowkit_directions SET name = ?
        WHERE name = ? AND what NOT IN (SELECT what FROM flowkit_directions WHERE name = ?)"""
    stage: str = f"""
        INSERT INTO flowkit_messages
        (copy, flow, {ENVELOPE}, generation, attempts, deliveries, staged, due, worker)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {{now}}, {{now}} + ?, ?)"""
    # An invalid or exhausted number of deliveries would fail the lease of all rows of the flow. It restarts at 1.
    lease: str = f"""
        WITH ready AS (SELECT copy, length(body) AS bytes FROM flowkit_messages WHERE flow = ? AND due <= {{now}}
                       ORDER BY due LIMIT ? {{skip}}),
        taken AS (SELECT copy FROM (SELECT copy, sum(bytes) OVER (ROWS UNBOUNDED PRECEDING) - bytes AS before
                                    FROM ready) AS sized WHERE before < {BATCH_BYTES})
        UPDATE flowkit_messages SET due = {{now}} + ?, worker = ?, parked = NULL, deliveries =
               CASE WHEN deliveries BETWEEN 0 AND 2147483646 THEN CAST(deliveries AS integer) + 1 ELSE 1 END
        WHERE copy IN (SELECT copy FROM taken)
        RETURNING copy, flow, {ENVELOPE}, generation, attempts, deliveries, staged"""
    renew: str = "UPDATE flowkit_messages SET due = {now} + ? WHERE copy = ? AND deliveries = ?"
    release: str = "UPDATE flowkit_messages SET due = {now}, worker = NULL WHERE copy = ? AND deliveries = ?"
    park: str = """
        UPDATE flowkit_messages SET due = {now} + ?, worker = NULL, parked = ? WHERE copy = ? AND deliveries = ?"""
    unpark: str = """
        UPDATE flowkit_messages SET due = {now}
        WHERE parked IS NOT NULL AND flow IN (SELECT value ->> 0 FROM {each})"""
    remove: str = """
        DELETE FROM flowkit_messages WHERE copy {among} AND (copy, deliveries) IN
        (SELECT value ->> 0, CAST(value ->> 1 AS integer) FROM {each})"""
    # min(due) reads the first row of the index. With EXISTS, PostgreSQL would scan all rows that are not due.
    due: str = """
        SELECT value ->> 0 FROM {each}
        WHERE (SELECT min(due) FROM flowkit_messages WHERE flow = value ->> 0) <= {now}"""
    due_of_all: str = """
        SELECT flow FROM flowkit_subscriptions AS one
        WHERE (SELECT min(due) FROM flowkit_messages AS row WHERE row.flow = one.flow) <= {now}"""
    count: str = """
        INSERT INTO flowkit_counters AS total (flow, lane, accepted, applied, dead, discarded, expired, unidentified,
                                               reused)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (flow, lane) DO UPDATE SET
        accepted = total.accepted + excluded.accepted, applied = total.applied + excluded.applied,
        dead = total.dead + excluded.dead, discarded = total.discarded + excluded.discarded,
        expired = total.expired + excluded.expired, unidentified = total.unidentified + excluded.unidentified,
        reused = total.reused + excluded.reused"""

    get_object: str = """
        SELECT value FROM flowkit_objects WHERE space = ? AND key = ? AND (expires IS NULL OR expires > {now})"""
    put_object: str = """
        INSERT INTO flowkit_objects (space, key, value, expires) VALUES (?, ?, ?, {now} + CAST(? AS bigint))
        ON CONFLICT (space, key) DO UPDATE SET value = excluded.value, expires = excluded.expires"""
    delete_object: str = "DELETE FROM flowkit_objects WHERE space = ? AND key = ?"
    # Writes of a message that has read the key. If they return no row, another transaction has changed it since.
    create_object: str = """
        INSERT INTO flowkit_objects AS kept (space, key, value, expires) VALUES (?, ?, ?, {now} + CAST(? AS bigint))
        ON CONFLICT (space, key) DO UPDATE SET value = excluded.value, expires = excluded.expires
        WHERE kept.expires <= {now} RETURNING key"""
    replace_object: str = """
        UPDATE flowkit_objects SET value = ?, expires = {now} + CAST(? AS bigint)
        WHERE space = ? AND key = ? AND value = ? RETURNING key"""
    remove_object: str = "DELETE FROM flowkit_objects WHERE space = ? AND key = ? AND value = ? RETURNING key"
    purge_objects: str = """
        DELETE FROM flowkit_objects WHERE ({object}) IN
        (SELECT {object} FROM flowkit_objects WHERE space = ? AND expires <= {now} LIMIT ? {skip}) RETURNING key"""
    put_reply: str = """
        INSERT INTO flowkit_replies (app, route, principal, id, reply, expires)
        VALUES (?, ?, ?, ?, ?, {now} + CAST(? AS bigint))
        ON CONFLICT (app, route, principal, id) DO UPDATE SET reply = excluded.reply, expires = excluded.expires"""
    get_replies: str = """
        SELECT kept.route, kept.principal, kept.id, kept.reply FROM {each} JOIN flowkit_replies AS kept
        ON kept.app = value ->> 0 AND kept.route = value ->> 1 AND kept.principal = value ->> 2
        AND kept.id = value ->> 3 WHERE kept.expires > {now}"""
    purge_replies: str = """
        DELETE FROM flowkit_replies WHERE ({reply}) IN
        (SELECT {reply} FROM flowkit_replies WHERE app = ? AND expires <= {now} LIMIT ? {skip}) RETURNING id"""
    now: str = "SELECT {now}"
    started: str = "SELECT {started}"
    join: str = """
        INSERT INTO flowkit_workers (id, app, host, pid, team, site, version, state, epoch, handled, failed, p99,
                                     locked, signs, started, heartbeat)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, {now}, {now})
        ON CONFLICT (id) DO UPDATE
        SET state = excluded.state, epoch = excluded.epoch, handled = excluded.handled, failed = excluded.failed,
            p99 = excluded.p99, locked = excluded.locked, heartbeat = excluded.heartbeat"""
    rollout: str = """
        SELECT baseline, candidate, weight, before, epoch, {now} - since,
               (SELECT count(*) FROM flowkit_workers AS worker WHERE worker.app = rolled.app AND worker.state <> 'spare'
                AND worker.epoch < rolled.epoch AND worker.heartbeat > {now} - CAST(? AS bigint))
        FROM flowkit_rollouts AS rolled WHERE app = ?"""
    begin_rollouts: str = """
        INSERT INTO flowkit_rollouts (app, baseline, candidate, weight, before, epoch, since, began)
        SELECT CAST(? AS text), coalesce((SELECT min(version) FROM flowkit_workers WHERE app = ? AND version <> ?
               AND state <> 'spare' AND heartbeat > {now} - CAST(? AS bigint)), CAST(? AS text)), '', 0, 0, 1,
               {now}, {now}
        WHERE true ON CONFLICT (app) DO NOTHING"""
    change_rollout: str = """
        UPDATE flowkit_rollouts
        SET baseline = ?, candidate = ?, weight = ?, before = ?, epoch = epoch + 1, since = {now},
            began = CASE WHEN weight = 0 THEN {now} ELSE began END
        WHERE app = ? AND epoch = ? RETURNING epoch"""
    direct: str = """
        INSERT INTO flowkit_directions (what, name, value, since) VALUES (?, ?, ?, {now})
        ON CONFLICT (what, name) DO UPDATE SET value = excluded.value, since = excluded.since"""
    leave_alone: str = "DELETE FROM flowkit_directions WHERE what = ? AND name = ?"
    up_anew: str = """
        INSERT INTO flowkit_uptime (app, since, until) SELECT CAST(? AS text), {now}, {now} WHERE NOT EXISTS
        (SELECT 1 FROM flowkit_uptime WHERE app = ? AND until > {now} - CAST(? AS bigint)) ON CONFLICT DO NOTHING"""
    up_still: str = "UPDATE flowkit_uptime SET until = {now} WHERE app = ? AND until > {now} - CAST(? AS bigint)"
    uptime: str = """
        SELECT ({now} - since) / 1e6, ({now} - until) / 1e6 FROM flowkit_uptime
        WHERE app = ? AND since >= COALESCE(
            (SELECT max(since) FROM flowkit_uptime WHERE app = ? AND since <= {now} - CAST(? AS bigint)), 0)
        ORDER BY since"""
    ready: str = """
        SELECT count(*) FROM flowkit_workers
        WHERE app = ? AND state = 'ready' AND heartbeat > {now} - CAST(? AS bigint)"""
    # The mark is the latest time that a heartbeat saw; at first, that of any message. A clock set back is before it.
    first_mark: str = """
        INSERT INTO flowkit_leases (name, holder, until) SELECT 'clock', '', (SELECT max(seen) FROM
        (SELECT {now} AS seen UNION ALL SELECT max(staged) FROM flowkit_messages) AS times)
        WHERE NOT EXISTS (SELECT 1 FROM flowkit_leases WHERE name = 'clock') ON CONFLICT DO NOTHING"""
    keep_mark: str = "UPDATE flowkit_leases SET until = {now} WHERE name = 'clock' AND until < {now} - 900000"
    mark: str = "SELECT {now}, (SELECT until FROM flowkit_leases WHERE name = 'clock')"
    # This skips a row that another process, perhaps a frozen one, has locked: no heartbeat waits for it.
    set_mark: str = """
        UPDATE flowkit_leases SET until = {now} WHERE name IN (SELECT name FROM flowkit_leases
        WHERE name = 'clock' AND until = CAST(? AS bigint) AND until > {now} {skip}) RETURNING until"""
    # The present time is the first parameter, not {now}: the clock may be set again between statements.
    move_messages: str = """
        WITH set_to (now, by) AS (SELECT CAST(? AS bigint), CAST(? AS bigint))
        UPDATE flowkit_messages SET due = due - (SELECT by FROM set_to),
        staged = staged - CASE WHEN staged > (SELECT now FROM set_to) THEN (SELECT by FROM set_to) ELSE 0 END
        WHERE due > (SELECT now FROM set_to) AND CASE WHEN worker IS NOT NULL THEN due > CAST(? AS bigint)
        ELSE staged > (SELECT now FROM set_to) OR (staged < CAST(? AS bigint) AND due <= CAST(? AS bigint)) END"""
    move_leases: str = """
        UPDATE flowkit_leases SET until = until - CAST(? AS bigint)
        WHERE name <> 'clock' AND until > CAST(? AS bigint)"""
    move_workers: str = """
        WITH set_to (now, by) AS (SELECT CAST(? AS bigint), CAST(? AS bigint))
        UPDATE flowkit_workers SET
        heartbeat = heartbeat - CASE WHEN heartbeat > (SELECT now FROM set_to) THEN (SELECT by FROM set_to) ELSE 0 END,
        started = started - CASE WHEN started > (SELECT now FROM set_to) THEN (SELECT by FROM set_to) ELSE 0 END"""
    move_uptime: str = """
        WITH set_to (now, by) AS (SELECT CAST(? AS bigint), CAST(? AS bigint))
        UPDATE flowkit_uptime SET
        until = until - CASE WHEN until > (SELECT now FROM set_to) THEN (SELECT by FROM set_to) ELSE 0 END,
        since = since - CASE WHEN since > (SELECT now FROM set_to) THEN (SELECT by FROM set_to) ELSE 0 END
        WHERE until > (SELECT now FROM set_to) OR since > (SELECT now FROM set_to)"""
    move_rollouts: str = """
        WITH set_to (now, by) AS (SELECT CAST(? AS bigint), CAST(? AS bigint))
        UPDATE flowkit_rollouts SET
        since = since - CASE WHEN since > (SELECT now FROM set_to) THEN (SELECT by FROM set_to) ELSE 0 END,
        began = began - CASE WHEN began > (SELECT now FROM set_to) THEN (SELECT by FROM set_to) ELSE 0 END"""
    others: str = "SELECT id, locked, heartbeat < {now} - CAST(? AS bigint) FROM flowkit_workers WHERE id <> ?"
    crew: str = "SELECT id, locked, heartbeat < {now} - CAST(? AS bigint) FROM flowkit_workers WHERE app = ?"
    member: str = "SELECT locked, heartbeat < {now} - CAST(? AS bigint) FROM flowkit_workers WHERE id = ?"
    free: str = """
        UPDATE flowkit_messages SET due = {now}, worker = NULL
        WHERE worker = ? AND flow IN (SELECT flow FROM flowkit_subscriptions) AND due > {now}"""
    leave: str = "DELETE FROM flowkit_workers WHERE id = ?"
    elect: str = """
        INSERT INTO flowkit_leases AS lease (name, holder, until)
        VALUES (?, ?, {now} + CAST(? AS bigint))
        ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
        WHERE lease.holder = excluded.holder OR lease.until < {now} RETURNING holder"""
    hand_over: str = "DELETE FROM flowkit_leases WHERE holder = ? AND substr(name, 1, 8) = 'cleaner:'"
    # Renewal and takeover are two statements: one that may change the key would wait for each commit that locks it,
    # and let others wait.
    keep_active: str = """
        UPDATE flowkit_leases SET until = {now} + CAST(? AS bigint) WHERE name = ? AND holder = ?"""
    first_active: str = """
        INSERT INTO flowkit_leases (name, holder, token, until) VALUES (?, '', 0, 0) ON CONFLICT DO NOTHING"""
    make_active: str = """
        UPDATE flowkit_leases SET until = {now} + CAST(? AS bigint), holder = ?, token = token + 1
        WHERE name = ? AND until < {now} AND (CAST(? AS text) = '' OR NOT EXISTS
        (SELECT 1 FROM flowkit_workers WHERE app = ? AND team = '' AND heartbeat > {now} - CAST(? AS bigint)))
        RETURNING token"""
    step_down: str = """
        UPDATE flowkit_leases SET until = {now} - 1 WHERE name = ? AND holder = ? AND NOT EXISTS
        (SELECT 1 FROM flowkit_workers WHERE app = ? AND team = ? AND heartbeat > {now} - CAST(? AS bigint))"""
    active: str = "SELECT holder, token, until - {now} FROM flowkit_leases WHERE name = ?"
    # These skip rows that a transaction of the other group, perhaps a frozen one, has locked: no takeover waits.
    free_others: str = """
        UPDATE flowkit_messages SET due = {now}, worker = NULL WHERE copy IN
        (SELECT copy FROM flowkit_messages
         WHERE worker IN (SELECT id FROM flowkit_workers WHERE app = ? AND team <> ?)
         AND flow IN (SELECT flow FROM flowkit_subscriptions) AND due > {now} {skip})"""
    evict: str = """
        DELETE FROM flowkit_workers WHERE id IN
        (SELECT id FROM flowkit_workers WHERE app = ? AND team <> ? {skip})"""
    # `|| ''` makes PostgreSQL find rows by the index on their age, not by their flow, which most rows share.
    purge_inbox: str = """
        DELETE FROM flowkit_inbox WHERE ({entry}) IN
        (SELECT {entry} FROM flowkit_inbox WHERE state = 1 AND flow || '' {among}
         AND changed >= ? AND changed < CAST(? AS bigint) ORDER BY changed LIMIT ? {skip})
        RETURNING changed"""
    expire_dead: str = """
        DELETE FROM flowkit_dead WHERE ({letter}) IN
        (SELECT {letter} FROM flowkit_dead WHERE flow IN (SELECT value ->> 0 FROM {each})
         AND died < {now} - CAST(? AS bigint) ORDER BY died LIMIT ?)
        RETURNING flow, source, id"""
    forget: str = "DELETE FROM flowkit_inbox WHERE flow = ? AND source = ? AND id = ?"
    conclude: str = "UPDATE flowkit_inbox SET state = 1, changed = {now} WHERE flow = ? AND source = ? AND id = ?"
    fold: str = """
        DELETE FROM flowkit_counters WHERE (flow, lane) IN
        (SELECT flow, lane FROM flowkit_counters WHERE lane <> '' AND substr(lane, 1, 36) NOT IN
         (SELECT id FROM flowkit_workers) LIMIT ? {skip})
        RETURNING flow, accepted, applied, dead, discarded, expired, unidentified, reused"""

    place: str = "SELECT value FROM flowkit_meta WHERE name = 'database'"
    first_place: str = "INSERT INTO flowkit_meta (name, value) VALUES ('database', ?) ON CONFLICT (name) DO NOTHING"
    move: str = """
        INSERT INTO flowkit_meta (name, value) VALUES ('database', ?)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value"""
    rename: str = "UPDATE flowkit_meta SET value = ? WHERE name = ?"

    keys: str = """
        SELECT id, secret, {now} - made, expires - {now} FROM flowkit_keys ORDER BY made DESC, id"""
    add_key: str = "INSERT INTO flowkit_keys (id, secret, made) VALUES (?, ?, {now})"
    retire_keys: str = """
        UPDATE flowkit_keys SET expires = {now} + CAST(? AS bigint)
        WHERE id <> ? AND (expires IS NULL OR expires > {now} + CAST(? AS bigint))"""
    forget_keys: str = "DELETE FROM flowkit_keys"
    signing: str = """
        SELECT (SELECT value FROM flowkit_meta WHERE name = 'oldest'),
               (SELECT value FROM flowkit_meta WHERE name = 'unsigned'), {now},
               (SELECT count(*) FROM flowkit_workers WHERE signs = 0), ({longest})"""
    longest_retention: str = "{longest}"
    note_retention: str = """
        INSERT INTO flowkit_meta AS noted (name, value) VALUES (?, ?)
        ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE noted.value <> excluded.value"""
    older_workers: str = "SELECT id FROM flowkit_workers WHERE signs = 0"
    drain_unsigned: str = "UPDATE flowkit_meta SET value = ? WHERE name = 'unsigned'"
    require_signatures: str = "DELETE FROM flowkit_meta WHERE name = 'unsigned'"
    raise_oldest: str = "UPDATE flowkit_meta SET value = ? WHERE name = 'oldest' AND value < ?"

    # A write for transactions that only read, so that their commit reaches the standby.
    witness: str = "{witness}"
    # The settings by which the database finds FlowKit's tables and grants access to them.
    ground: str = "{ground}"
    select_dead: str = """
        WITH asked (flow, error) AS (SELECT CAST(? AS text), CAST(? AS text))
        SELECT letter FROM flowkit_dead AS dead, asked
        WHERE (asked.flow IS NULL OR dead.flow = asked.flow)
        AND (asked.error IS NULL OR replace(dead.error, asked.error, '') <> dead.error)
        ORDER BY died, letter LIMIT ?"""
    group_dead: str = """
        WITH asked (flow, error) AS (SELECT CAST(? AS text), CAST(? AS text))
        SELECT dead.flow, dead.reason, dead.error, count(*) AS many FROM flowkit_dead AS dead, asked
        WHERE (asked.flow IS NULL OR dead.flow = asked.flow)
        AND (asked.error IS NULL OR replace(dead.error, asked.error, '') <> dead.error)
        GROUP BY dead.flow, dead.reason, dead.error ORDER BY many DESC, dead.flow, dead.reason, dead.error LIMIT ?"""
    dead_of_version: str = f"""
        SELECT letter FROM flowkit_dead
        WHERE version = ? AND reason <> '{REFUSED}' AND substr(flow, 1, length(CAST(? AS text))) = ?
        AND died >= (SELECT began FROM flowkit_rollouts WHERE app = ?) ORDER BY letter"""
    read_dead: str = f"""
        SELECT letter, flow, {ENVELOPE}, generation, attempts, died, reason, error, stack FROM flowkit_dead
        WHERE letter IN (SELECT value ->> 0 FROM {{each}}) ORDER BY died, letter"""
    list_dead: str = f"""
        SELECT letter, flow, {ENVELOPE.replace(" body,", " '' AS body,")}, generation, attempts, died, reason, error,
               '' AS stack FROM flowkit_dead
        WHERE letter IN (SELECT value ->> 0 FROM {{each}}) ORDER BY died, letter"""
    # The ledger does not count copies for an exchange: FlowKit cannot know what becomes of them. Nor does it count
    # unreadable foreign messages that a retry sent again: they are accepted when they are first recorded.
    balances: str = """
        SELECT flow, sum(accepted), sum(applied), sum(dead), sum(discarded), sum(expired), sum(pending), sum(letters),
               sum(unidentified), sum(reused)
        FROM (SELECT flow, accepted, applied, dead, discarded, expired, 0 AS pending, 0 AS letters, unidentified, reused
              FROM flowkit_counters
              UNION ALL SELECT {of} AS flow, 0, 0, 0, 0, 0, count(*), 0, 0, 0 FROM flowkit_messages
                        WHERE source <> '{unread}' GROUP BY {of}
              UNION ALL SELECT flow, 0, 0, 0, 0, 0, 0, count(*), 0, 0 FROM flowkit_dead GROUP BY flow
              UNION ALL SELECT {of} AS flow, 0, 0, 0, 0, 0, 0, 0, 0, 0 FROM flowkit_subscriptions) AS entries
        WHERE substr(flow, 1, 9) <> 'exchange:' GROUP BY flow ORDER BY flow"""
    backlog: str = """
        SELECT {of} AS name, sum(CASE WHEN due <= {now} THEN 1 ELSE 0 END),
               sum(CASE WHEN due > {now} AND worker IS NOT NULL THEN 1 ELSE 0 END),
               sum(CASE WHEN due > {now} AND worker IS NULL AND parked IS NULL THEN 1 ELSE 0 END),
               sum(CASE WHEN parked IS NOT NULL THEN 1 ELSE 0 END), {now} - min(staged)
        FROM flowkit_messages GROUP BY {of} ORDER BY name"""
    fleet: str = """
        SELECT id, app, host, pid, team, site, version, state, epoch, handled, failed, p99, {now} - started,
               {now} - heartbeat
        FROM flowkit_workers ORDER BY id"""

    @classmethod
    def render(
        cls,
        now: str,
        each: str,
        among: str,
        skip: str,
        marker: str,
        witness: str = "",
        ground: str = "",
        hold: str = "",
        row: str = "",
        started: str = "''",
    ) -> "Statements":
        """Return the statements for one database, given its SQL for the placeholders. `row`: the column that identifies
        a row which was just read, unless that is its key."""

        def one(text: str) -> str:
            filled = text.format(
                now=f"(SELECT {now})", each=each, among=among.format(each=each), skip=skip, witness=witness,
                hold=hold, ground=ground,
                of=f"replace(flow, '{CANDIDATE}', '')", entry=row or "flow, source, id", letter=row or "letter",
                object=row or "space, key", reply=row or "app, route, principal, id", started=started, unread=UNREAD,
                longest=LONGEST,
            )  # fmt: skip
            return " ".join(filled.split()).replace("?", marker)

        return cls(**{field.name: one(str(field.default)) for field in fields(cls)})
