# docker-compose.yml runs this once, for a new volume, in the container of PostgreSQL. The application's role owns its
# database and is not a superuser. It may create databases, because jobs.backup_database restores each backup into a new
# one to verify it.
psql --set=ON_ERROR_STOP=1 --username=postgres --dbname=postgres <<'SQL'
\getenv password PUNCTUAL_PASSWORD
CREATE ROLE punctual LOGIN CREATEDB PASSWORD :'password';
CREATE DATABASE punctual OWNER punctual;
REVOKE CONNECT ON DATABASE punctual FROM PUBLIC;
SQL
