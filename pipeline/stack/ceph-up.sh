#!/usr/bin/env bash
# A real S3 server on loopback, for one machine: Ceph's RADOS gateway from Debian's packages.
# For tests and for trying things out: one copy of the data, no replica. No Docker, no systemd.
#
#   ceph-up.sh DIR [options]   start; prints the environment of its clients
#   ceph-up.sh DIR gateway     start the gateway alone again, after it was killed
#   ceph-up.sh DIR down        end all of it; DIR stays
#
#   --port N            of the gateway; where left out the one of before if it is free, else any
#   --host ADDRESS      that the gateway binds to, 127.0.0.1 where left out; in a container 0.0.0.0
#   --disk              objects are kept in DIR, over `down` and a later start; else they are in memory
#   --gb N              the most that they may take, 4 where left out
#   --user NAME=FILE    one more user, with the keys of an AWS credentials file; sees its own buckets only
#   --wait              stays until the gateway ends, and ends all at SIGTERM: for a container
#   --unpack            fetches the packages from the mirrors that apt knows and unpacks them into
#                       DIR/root (or $CEPH_ROOT), for a machine where nothing may be installed
#
# Everything is in DIR, readable for its owner alone: DIR/env has the address and the keys (eval it),
# DIR/{mon,osd,gateway}.pid the processes, each the leader of a group of its own, DIR/ready is there
# from when all users are.
# Exit code 3: programs are missing. 2: used wrongly. 1: it did not start, and nothing is left running.
set -euo pipefail
umask 077

usage() { sed -n '2,/^set/{s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
[ $# -ge 1 ] && [ "${1#-}" = "$1" ] || usage
mkdir -p "$1"; DIR=$(cd "$1" && pwd); shift
verb=up port='' host=127.0.0.1 store=memstore gb=4 unpack=no stay=no users=()
while [ $# -gt 0 ]; do
  case $1 in
    up|gateway|down) verb=$1 ;;
    --port) port=${2:?--port needs a number}; shift ;;
    --host) host=${2:?--host needs an address}; shift ;;
    --gb) gb=${2:?--gb needs a number}; shift ;;
    --user) users+=("${2:?--user needs NAME=FILE}"); shift ;;
    --wait) stay=yes ;;
    --disk) store=bluestore ;;
    --unpack) unpack=yes ;;
    *) usage ;;
  esac
  shift
done
PATIENCE_SEC=${PATIENCE_SEC:-180}
ROOT=${CEPH_ROOT:-$DIR/root}
export CEPH_CONF=$DIR/ceph.conf
unset PYTHONPATH  # the ceph command is the distribution's Python

running() {  # whether the process of DIR/$1.pid lives; a zombie does not
  local pid state
  pid=$(cat "$DIR/$1.pid" 2>/dev/null) || return 1
  case $1:$(cat "/proc/$pid/comm" 2>/dev/null) in  # else the number is somebody else's by now
    mon:ceph-mon | osd:ceph-osd | gateway:radosgw) ;;
    *) return 1 ;;
  esac
  state=$(sed 's/.*) //; s/ .*//' "/proc/$pid/stat" 2>/dev/null) && [ "$state" != Z ] && [ -n "$state" ]
}

down() {
  local name i
  rm -f "$DIR/ready"
  for name in gateway osd mon; do
    running "$name" && kill "$(cat "$DIR/$name.pid")" 2>/dev/null || true
    for ((i = 0; i < 100; i++)); do running "$name" || break; sleep 0.1; done
    running "$name" && kill -9 "$(cat "$DIR/$name.pid")" 2>/dev/null || true
    rm -f "$DIR/$name.pid"
  done
}
if [ $verb = down ]; then down; exit 0; fi

PROGRAMS="ceph ceph-authtool ceph-mon ceph-osd monmaptool radosgw radosgw-admin"
missing() { for program in $PROGRAMS; do command -v "$program" >/dev/null || echo -n "$program "; done; }
in_root() {  # where the packages were unpacked and not installed
  [ -x "$ROOT/usr/bin/radosgw" ] || return 1
  local lib; lib=$(echo "$ROOT"/usr/lib/*-linux-gnu)
  export PATH=$ROOT/usr/bin:$PATH PYTHONPATH=$ROOT/usr/lib/python3/dist-packages
  export LD_LIBRARY_PATH=$lib:$lib/ceph:$ROOT/usr/lib/ceph:${lib/usr\/lib/lib}
  MODULES="osd class dir = $lib/rados-classes
plugin dir = $lib/ceph
erasure code dir = $lib/ceph/erasure-code"
}
MODULES=''
[ -z "$(missing)" ] || in_root || if [ $unpack = yes ]; then
  mkdir -p "$ROOT" "$DIR/debs"; chmod 755 "$DIR/debs"
  apt-get update -qq >&2
  needed=$(apt-get install -s --no-install-recommends radosgw ceph-mon ceph-osd ceph-base ceph-common | awk '/^Inst/{print $2}')
  (cd "$DIR/debs" && apt-get download -qq $needed >&2)
  for deb in "$DIR"/debs/*.deb; do dpkg-deb -x "$deb" "$ROOT"; done
  rm -rf "$DIR/debs"
  in_root
fi
if [ -n "$(missing)" ]; then
  echo "$(missing)not installed (Debian: apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common)" >&2
  exit 3
fi

failed() { echo "$1 did not start: $(tail -c 2000 "$DIR/log/$2" 2>/dev/null)" >&2; exit 1; }
wait_for() {  # name, command...: until it succeeds, or the process is gone
  local name=$1 until=$((SECONDS + PATIENCE_SEC)); shift
  until "$@" >/dev/null 2>&1; do
    running "$name" && [ $SECONDS -lt $until ] || failed "$name" "$name.out"
    sleep 0.1
  done
}
start() {  # name, command...: a daemon that outlives this script, in a group of its own
  local name=$1; shift
  setsid "$@" -f >>"$DIR/log/$name.out" 2>&1 </dev/null &
  echo $! >"$DIR/$name.pid"
  while kill -0 $! 2>/dev/null && ! running "$name"; do sleep 0.01; done  # until it is the program
}
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1"); }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
port() { sed -n 's/.*endpoint=[0-9.]*:\([0-9]*\).*/\1/p' "$CEPH_CONF"; }
gateway() {
  running gateway && return
  start gateway radosgw -n client.rgw
  wait_for gateway listens "$(port)"
}
if [ $verb = gateway ]; then
  [ -f "$DIR/env" ] || { echo "there is no store in $DIR: start it first" >&2; exit 2; }
  gateway; exit 0
fi

trap '[ $? -eq 0 ] || down' EXIT
# What was in memory is gone with its processes: then all begins anew.
if [ -f "$DIR/env" ] && ! running osd && ! grep -q bluestore "$CEPH_CONF"; then
  down; rm -f "$DIR/env"
fi
new=no
if [ ! -f "$DIR/env" ]; then
  new=yes; down
  rm -rf "$DIR/mon" "$DIR/osd" "$DIR/run" "$DIR/log" "$DIR/keyring"
  mkdir -p "$DIR/mon" "$DIR/osd" "$DIR/run" "$DIR/log"
  cat /proc/sys/kernel/random/uuid >"$DIR/fsid"
fi
if ! running mon && ! running osd && ! running gateway; then  # their ports may be others' by now
  if [ $new = no ]; then
    store=bluestore before=$(port)
    [ -n "$port" ] || listens "$before" 2>/dev/null || port=$before
  fi
  fsid=$(cat "$DIR/fsid") mon_port=$(free_port) port=${port:-$(free_port)}
  cat >"$CEPH_CONF" <<EOF
[global]
fsid = $fsid
mon host = v2:127.0.0.1:$mon_port
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
ms bind ipv6 = false
ms bind msgr1 = false
public network = 127.0.0.0/8
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
keyring = $DIR/keyring
mon data = $DIR/mon
mon tick interval = 1
paxos propose interval = 0.05
paxos min wait = 0.02
run dir = $DIR/run
admin socket = $DIR/run/\$name.\$pid.asok
pid file = $DIR/run/\$name.pid
log file = $DIR/log/\$name.log
crash dir = $DIR
$MODULES
[osd]
osd data = $DIR/osd
osd objectstore = $store
memstore device bytes = $((gb << 30))
bluestore cache autotune = false
bluestore cache size = $((64 << 20))
osd op num shards = 2
osd op num threads per shard = 1
[client.rgw]
rgw data = $DIR
rgw frontends = beast endpoint=$host:$port tcp_nodelay=1
rgw thread pool size = 16
EOF
  monmaptool --create --clobber --addv a "[v2:127.0.0.1:$mon_port]" --fsid "$fsid" "$DIR/monmap" >/dev/null
  if [ $new = no ]; then
    ceph-mon -i a --inject-monmap "$DIR/monmap" >"$DIR/log/mkfs.out" 2>&1 || failed ceph-mon mkfs.out
    sed -i "s#^export AWS_ENDPOINT_URL=.*#export AWS_ENDPOINT_URL=http://127.0.0.1:$port#" "$DIR/env"
  fi
fi
if [ $new = yes ]; then
  key() { ceph-authtool "$DIR/keyring" --gen-key "$@" >/dev/null; }
  key --create-keyring -n mon. --cap mon 'allow *'
  key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
  key -n client.rgw --cap mon 'allow rwx' --cap osd 'allow rwx'
  key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *'
  ceph-mon --mkfs -i a --monmap "$DIR/monmap" --keyring "$DIR/keyring" >"$DIR/log/mkfs.out" 2>&1 || failed ceph-mon mkfs.out
fi

ask() { timeout 10 ceph --connect-timeout 2 "$@"; }
is_up() { ask osd stat 2>/dev/null | grep -q "1 up"; }
running mon || start mon ceph-mon -i a
wait_for mon ask mon stat
if [ $new = yes ]; then
  id=$(cat /proc/sys/kernel/random/uuid)
  wait_for mon ask osd new "$id" 0
  [ "$store" = memstore ] || truncate -s "${gb}G" "$DIR/osd/block"
  ceph-osd -i 0 --mkfs --osd-uuid "$id" >"$DIR/log/mkfs.out" 2>&1 || failed ceph-osd mkfs.out
fi
running osd || start osd ceph-osd -i 0
wait_for osd is_up
gateway
if [ $new = yes ]; then
  user=$(radosgw-admin user create --uid=forger --display-name=forger 2>"$DIR/log/user.out") || failed radosgw-admin user.out
  field() { sed -n "s/.*\"$1\": \"\(.*\)\".*/\1/p" <<<"$user" | tail -n 1 | sed 's#\\/#/#g'; }
  cat >"$DIR/env.part" <<EOF
export AWS_ENDPOINT_URL=http://127.0.0.1:$(port)
export AWS_ACCESS_KEY_ID=$(field access_key)
export AWS_SECRET_ACCESS_KEY=$(field secret_key)
export AWS_DEFAULT_REGION=us-east-1
export AWS_REQUEST_CHECKSUM_CALCULATION=when_required
export AWS_RESPONSE_CHECKSUM_VALIDATION=when_required
export AWS_EC2_METADATA_DISABLED=true
EOF
  mv "$DIR/env.part" "$DIR/env"
fi
for user in ${users[@]+"${users[@]}"}; do
  name=${user%%=*} file=${user#*=}
  of_file() { sed -n "s/^ *$1 *= *\([^ ]*\) *$/\1/p" "$file" | tail -n 1; }
  radosgw-admin user info --uid="$name" >/dev/null 2>&1 ||
    radosgw-admin user create --uid="$name" --display-name="$name" --access-key="$(of_file aws_access_key_id)" \
      --secret="$(of_file aws_secret_access_key)" >/dev/null 2>"$DIR/log/user.out" || failed radosgw-admin user.out
done
touch "$DIR/ready"
if [ $stay = no ]; then cat "$DIR/env"; exit 0; fi
trap 'exit 143' TERM INT
trap down EXIT
while running gateway && running osd && running mon; do sleep 1 & wait $!; done
failed gateway gateway.out
