"""The residue of statements, for others on the same transaction or connection."""

import pytest

from flowkit.store.residue import TOKEN, Residue, refusal, residue


@pytest.mark.parametrize(
    ("statement", "left"),
    [
        ("SELECT 1", Residue.NONE),
        ("INSERT INTO settings (name) VALUES ('x')", Residue.NONE),
        ("UPDATE t SET a = 1", Residue.NONE),
        ("SAVEPOINT mine", Residue.PASSING),
        ("ROLLBACK TO SAVEPOINT mine", Residue.PASSING),
        ("RELEASE mine", Residue.PASSING),
        ("SELECT 1 AS x INTO LOCAL TEMP mine", Residue.LASTING),
        ("EXPLAIN (ANALYZE) CREATE TEMP TABLE mine AS SELECT 1", Residue.LASTING),
        ("EXPLAIN ANALYZE CREATE TEMP TABLE mine AS SELECT 1", Residue.LASTING),
        ("/* a /* b */ c */ SET LOCAL app.tenant = 'acme'", Residue.SETTING),
        ("""SELECT 1 AS "it's", set_config('app.tenant', 'acme', true)""", Residue.SETTING),
        ("""SELECT 1 AS "it's", pg_advisory_lock(4711), 'x'""", Residue.LASTING),
        (r"SELECT E'it\'s', set_config('app.tenant', 'acme', true)", Residue.SETTING),
        ('SELECT "a""b;c" FROM t', Residue.NONE),
        ("CREATE TABLE temporary_orders (id int)", Residue.NONE),
        ("SET LOCAL app.tenant = 'x'", Residue.SETTING),
        ("-- who\n set role weak", Residue.SETTING),
        ("/* a */ RESET ALL", Residue.SETTING),
        ("SELECT set_config('a.b', 'x', true)", Residue.SETTING),
        ("WITH x AS (SELECT\nset_config ('a.b', 'x', false)) SELECT * FROM x", Residue.SETTING),
        ("PREPARE mine AS SELECT 1", Residue.LASTING),
        ("LISTEN news", Residue.LASTING),
        ("CREATE TEMP TABLE mine (a int)", Residue.LASTING),
        ("CREATE OR REPLACE TEMP VIEW mine AS SELECT 1", Residue.LASTING),
        ("SELECT 1 INTO TEMPORARY mine", Residue.LASTING),
        ("SELECT pg_try_advisory_lock(1)", Residue.LASTING),
        ("SELECT pg_advisory_xact_lock(1)", Residue.NONE),
        ("DECLARE mine CURSOR WITH HOLD FOR SELECT 1", Residue.LASTING),
        ("DECLARE mine CURSOR FOR SELECT 1", Residue.PASSING),
        ("SET CONSTRAINTS ALL IMMEDIATE", Residue.PASSING),
        ("INSERT INTO temp (name) VALUES ('x')", Residue.NONE),
        ("INSERT INTO notes (text) VALUES ('select set_config(1); set role x')", Residue.NONE),
        ("INSERT INTO notes (text) VALUES ($x$ into temp y; set a = 1 $x$)", Residue.NONE),
        ("SELECT 1; SET LOCAL app.tenant = 'x'", Residue.SETTING),
        (";SET ROLE weak", Residue.SETTING),
        ("SELECT \"set_config\"('a.b', 'x', true)", Residue.SETTING),
        ("SELECT set_config/* */('a.b', 'x', true)", Residue.SETTING),
        ("UPDATE pg_settings SET setting = 'x'", Residue.SETTING),
        ("CREATE TABLE pg_temp.mine (a int)", Residue.LASTING),
        ("/* a */ " * 40 + "SELECT 1", Residue.NONE),
        ("CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT 1", Residue.PASSING),
    ],
)
def test_what_a_statement_leaves_behind(statement: str, left: int) -> None:
    assert residue(statement) is left


@pytest.mark.parametrize(
    ("statement", "refused"),
    [
        ("COMMIT", "SQL COMMIT"),
        (" /* x */ rollback work", "SQL ROLLBACK"),
        ("ROLLBACK TO SAVEPOINT mine", ""),
        ("PREPARE TRANSACTION 'mine'", "SQL PREPARE TRANSACTION"),
        ("PRAGMA query_only = 1", "PRAGMA query_only"),
        ("PRAGMA main.synchronous(0)", "PRAGMA synchronous"),
        ("PRAGMA table_info(orders)", ""),
        ("PRAGMA foreign_keys", ""),
        ("SELECT 1; COMMIT AND CHAIN", "SQL COMMIT"),
        ("; COMMIT", "SQL COMMIT"),
        ("SET TRANSACTION READ ONLY", "SQL SET TRANSACTION"),
        ("SET LOCAL transaction_read_only = on", "SQL SET LOCAL TRANSACTION_READ_ONLY"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "SQL SET SESSION CHARACTERISTICS"),
        ("SELECT 'x; COMMIT'", ""),
        ("PRAGMA [query_only] = 1", "PRAGMA (with a quoted name)"),
        ("PRAGMA 'query_only' = 1", "PRAGMA (with a quoted name)"),
        ('PRAGMA "query_only" = 1', "PRAGMA query_only"),
        ("CREATE TRIGGER a AFTER INSERT ON b BEGIN INSERT INTO c VALUES (1); END", ""),
        ("CREATE TRIGGER a AFTER INSERT ON b BEGIN SELECT 1; END; END", "SQL END"),
    ],
)
def test_what_a_statement_may_not_do(statement: str, refused: str) -> None:
    assert refusal(statement) == refused


def test_nobody_goes_back_to_a_savepoint_of_flowkits_own() -> None:
    assert refusal(f"ROLLBACK TO {TOKEN}") == "SQL with a savepoint of FlowKit's own"
