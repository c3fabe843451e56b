"""Finds the rights of a PostgreSQL role that workers do not need."""

import sqlalchemy

ASKED = """
    SELECT current_user, rolsuper, rolbypassrls,
           EXISTS (SELECT 1 FROM pg_class WHERE oid = to_regclass('flowkit_messages')
                   AND pg_has_role(current_user, relowner, 'USAGE')),
           has_schema_privilege(current_schema(), 'CREATE'), current_schema()
    FROM pg_roles WHERE rolname = current_user"""


def excess(connection: sqlalchemy.Connection) -> list[str]:
    """Return a sentence for each excess right of a connection's role, with what to do. Blocks for one statement."""
    role, is_super, passes, owns, creates, schema = connection.exec_driver_sql(ASKED).one()
    if is_super:  # a superuser has all other rights too
        return [
            f"role {role} of FLOWKIT_DATABASE_URL is a superuser, which may do everything on the server: let a role "
            "that has only the rights of a worker run the app (docs/guides/postgresql.md, Rights)"
        ]
    found = {
        "owns FlowKit's tables, and may drop or change them: let another role run the app, and this one run flowkit db "
        "upgrade": owns,
        f"may create tables and functions in schema {schema}: REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC, "
        f'"{role}"': creates,
        f'bypasses row security, even for your own tables: ALTER ROLE "{role}" NOBYPASSRLS': passes,
    }
    told = [what for what, is_so in found.items() if is_so]
    return [f"role {role} of FLOWKIT_DATABASE_URL {what} (docs/guides/postgresql.md, Rights)" for what in told]
