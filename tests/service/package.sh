#!/bin/bash
# The life of the Debian package on a machine with systemd. Runs there as the only service; old.deb,
# new.deb and a model lie beside it. What it prints is read by package.rs.
set -eu
cd "$(dirname "$0")"
trap 'code=$?; echo "ended with $code"; sync; systemctl exit $code' EXIT
exec 2>&1
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C

fail() { echo "FAILED: $*"; journalctl -u andon --no-pager | tail -40; exit 1; }
is() { [ "$1" = "$2" ] || fail "$3: '$1', expected '$2'"; }
until_true() { for _ in $(seq 600); do if "$@"; then return; fi; sleep 0.1; done; fail "waited in vain for: $*"; }
as_andon() { setpriv --reuid andon --regid andon --clear-groups "$@"; }
waiting() { as_andon andon outbox peek -n 1000 | sort; }
# A reading makes a verdict once a later one closes its step.
enough_waits() {
    mosquitto_pub -q 1 -t factory/l/m/count -m '{"value": 1}'
    [ "$(waiting | wc -l)" -ge 20 ]
}
pid() { systemctl show -p MainPID --value andon; }
modes() { xargs -d '\n' stat -c '%A %U:%G %n'; }

find /etc /usr /var /run -xdev -name '*andon*' > known
echo "== install"
dpkg -i old.deb
is "$(systemctl is-active andon)" active "after the install"
is "$(systemctl is-enabled andon)" enabled "after the install"
is "$(ps -o user= -p "$(pid)")" andon "who it runs as"
curl -fsS http://127.0.0.1:8420/health/ready >/dev/null || fail "not ready"
as_andon andon check -c /etc/andon/andon.toml || fail "the config that comes with it"
setpriv --reuid nobody --clear-groups cat /etc/andon/andon.toml && fail "everybody reads the config"

echo "== files"
{ dpkg -L andon | grep -E 'andon' | grep -v -e /doc/ -e /share/andon/models/.*/; echo /var/lib/andon; echo /var/lib/andon/models; } |
    sort | modes
echo "== unsafe files"
dpkg -L andon | grep andon | while read -r f; do find "$f" -maxdepth 0 \( -perm /022 -o -not -user root \); done

echo "== in use"
mosquitto -p 1883 -d
cp -r one-step /var/lib/andon/models/mine
chown -R andon:andon /var/lib/andon/models/mine
sed -i 's|^match = "\*"|&\nmodel = "mine"|' /etc/andon/andon.toml
printf '[cloud]\nurl = "http://127.0.0.1:9/"\n' >> /etc/andon/andon.toml
andon check
systemctl restart andon
subscribed() { curl -s http://127.0.0.1:8420/api/v1/status | grep -q connected; }
until_true subscribed
until_true enough_waits
waiting > before
config=$(sha256sum /etc/andon/andon.toml)
model=$(cd /var/lib/andon/models && sha256sum mine/*)
was=$(pid)
echo "$(wc -l < before) records wait"

echo "== upgrade"
dpkg -i new.deb
is "$(dpkg-query -W -f '${Version}' andon)" "$(dpkg-deb -f new.deb Version)" "the version"
is "$(systemctl is-active andon)" active "after the upgrade"
[ "$(pid)" != "$was" ] || fail "the old process still runs"
curl -fsS http://127.0.0.1:8420/health/ready >/dev/null || fail "not ready after the upgrade"
waiting > after
is "$(comm -23 before after)" "" "records that waited and are gone"
is "$(sha256sum /etc/andon/andon.toml)" "$config" "the operator's config"
is "$(stat -c '%a %U:%G' /etc/andon/andon.toml)" "640 root:andon" "who reads the config"
is "$(cd /var/lib/andon/models && sha256sum mine/*)" "$model" "the operator's model"
echo "$(wc -l < after) records wait"

echo "== remove"
dpkg -r andon
is "$(systemctl is-active andon)" inactive "after removal"
[ ! -e /usr/bin/andon ] || fail "the binary is still there"
is "$(sha256sum /etc/andon/andon.toml)" "$config" "the config after removal"
id andon >/dev/null || fail "the user is gone, the data is not"
[ -d /var/lib/andon/queue ] || fail "removal took the data"

echo "== install again"
dpkg -i new.deb
is "$(systemctl is-active andon)" active "after the second install"
waiting > again
is "$(comm -23 before again)" "" "records that waited and are gone after the second install"

echo "== purge"
dpkg -P andon
getent passwd andon && fail "the user is still there"
getent group andon && fail "the group is still there"
echo "== left over"
find /etc /usr /var /run -xdev -name '*andon*' | grep -v -F -x -f known || true
echo "== end"
