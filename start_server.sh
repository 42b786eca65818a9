#!/usr/bin/env bash
# Starts the worker, with what an earlier start left on the disk or from nothing:
#
#   start_server.sh                  on a Vast.ai instance; a template's on-start script may pipe it into bash
#   start_server.sh local [args...]  the demo on any machine, in a clone of the repository
#
# The README lists the environment variables.
set -Eeuo pipefail

script=${BASH_SOURCE[0]:-} # nothing, when piped into bash
on_instance=''

main() {
  trap '((BASH_SUBSHELL)) || fail "line $LINENO failed: $BASH_COMMAND"' ERR # whatever no step has foreseen
  case ${1:-} in
    '') run_worker ;;
    local) shift && run_demo "$@" ;;
    *) fail "usage: start_server.sh [local [args...]]" ;;
  esac
}

run_worker() {
  export REPORT_ADDR=${REPORT_ADDR:-https://run.vast.ai} USE_SSL=${USE_SSL:-true}
  export WORKER_PORT=${WORKER_PORT:-3000} UNSECURED=${UNSECURED:-false}
  export WORKSPACE_DIR=${WORKSPACE_DIR:-/workspace}
  node_home=$WORKSPACE_DIR/node
  on_instance=yes
  mkdir -p "$WORKSPACE_DIR"
  # A stop signals the whole process group, but the log must outlive the worker's last words.
  exec > >(trap '' TERM INT HUP PIPE && exec tee -a "$WORKSPACE_DIR/debug.log") 2>&1

  [[ ${CONTAINER_ID:-} =~ ^[0-9]+$ ]] || fail "CONTAINER_ID must be the instance's number"
  [[ ${BACKEND:-} =~ ^[A-Za-z0-9._-]+$ ]] || fail "BACKEND must be the name of a worker, for instance null"
  require curl sed tar
  provide_node
  provide_code
  cd "$server_dir"
  install_packages --ignore-scripts # the scripts would only bring another Node
  build
  find_worker
  [[ $USE_SSL != true ]] || provide_certificate
  supervise
}

run_demo() {
  find_clone || fail "local needs a clone of the repository around start_server.sh"
  node_home=${WORKSPACE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/null-pyworker}/node
  cd "$server_dir"
  if ! node_is_usable && npm --version >/dev/null 2>&1; then
    install_packages # with the scripts: they bring a Node that is new enough
    PATH=$server_dir/node_modules/.bin:$PATH
    provide_node
  else
    provide_node
    install_packages --ignore-scripts
  fi
  build
  exec node dist/null-pyworker.mjs local --demo "$@"
}

# --- Saying what happens ---

log() {
  echo "$(date -u +%FT%TZ) start_server: $1" >&2
}

# Runs one step on the way to a worker. If it fails, so does the start, and the reason is in the step's own words.
step() {
  local name=$1 words
  shift
  log "$name"
  words=$("$@" 2>&1 | sed 'w /dev/stderr') || fail "$name failed: $(complaint "$words")"
}

# What a tool complains of comes first, and help on how to use it may follow.
complaint() {
  local lines
  lines=$(sed -nE '/[Ee]rror|ERROR|fatal/p' <<<"$1" | head -n 5)
  printf '%s' "${lines:-$(tail -n 5 <<<"$1")}"
}

require() {
  local tool
  for tool; do
    command -v "$tool" >/dev/null || fail "$tool is not installed"
  done
}

fail() {
  log "$1"
  report "$1"
  exit 1
}

# Tells the autoscaler why there is no worker. The token goes through stdin, where no process list shows it.
report() {
  [[ -n $on_instance ]] || return 0
  local id=0 body addresses address attempt
  [[ ! ${CONTAINER_ID:-} =~ ^[0-9]+$ ]] || id=$((10#$CONTAINER_ID))
  printf -v body '{"id": %d, "mtoken": %s, "version": "1.1.0", "error_msg": %s, "url": %s}' \
    "$id" "$(json_string "${MASTER_TOKEN:-}")" "$(json_string "$1")" "$(json_string "$(advertised_url)")"
  IFS=', ' read -ra addresses <<<"$REPORT_ADDR"
  for attempt in 1 2 3; do
    for address in "${addresses[@]}"; do
      curl -fsS --max-time 10 -o /dev/null -H 'Content-Type: application/json' --data-binary @- \
        "${address%/}/worker_status/" <<<"$body" && return
    done
    ((attempt == 3)) || sleep 2
  done
  log "the autoscaler could not be told"
}

json_string() {
  local LC_ALL=C text=$1 code
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  while [[ $text =~ [[:cntrl:]] ]]; do
    printf -v code '\\u%04x' "'${BASH_REMATCH[0]}"
    text=${text//"${BASH_REMATCH[0]}"/"$code"}
  done
  printf '"%s"' "$text"
}

# The URL that clients reach the worker by; nothing while the instance does not say.
advertised_url() {
  local scheme=http port
  [[ $USE_SSL != true ]] || scheme=https
  [[ $WORKER_PORT =~ ^[0-9]+$ ]] || return 0
  port=VAST_TCP_PORT_$WORKER_PORT
  [[ -z ${PUBLIC_IPADDR:-} || -z ${!port:-} ]] || printf '%s://%s:%s' "$scheme" "$PUBLIC_IPADDR" "${!port}"
}

# Gives up on who does not answer, never on a download that is merely slow.
fetch() {
  curl -fsSL --connect-timeout 10 --speed-limit 1 --speed-time 30 --retry 3 --retry-connrefused "$@"
}

# --- Node ---

node_is_usable() {
  command -v npm >/dev/null && [[ $(node --version 2>/dev/null) =~ ^v([0-9]+)\.([0-9]+)\. ]] &&
    ((BASH_REMATCH[1] > 22 || (BASH_REMATCH[1] == 22 && BASH_REMATCH[2] >= 19)))
}

provide_node() {
  node_is_usable && return
  PATH=$node_home/bin:$PATH
  node_is_usable && return
  require curl sed tar
  step "installing Node" install_node
  node_is_usable || fail "the Node in $node_home does not run here, or is older than 22.19"
}

install_node() {
  local mirror=${NODE_MIRROR:-https://nodejs.org/dist} partial=$node_home.partial platform version archive
  case $(uname -sm) in
    'Linux x86_64') platform=linux-x64 ;;
    'Linux aarch64') platform=linux-arm64 ;;
    *) echo "no Node to download for $(uname -sm)" && return 1 ;;
  esac
  version=$(fetch "$mirror/index.json" | newest_lts) || return
  [[ -n $version ]] || { echo "$mirror/index.json names no LTS version" && return 1; }
  archive=node-$version-$platform.tar.gz
  rm -rf "$partial" && mkdir -p "$partial/tree" &&
    fetch -o "$partial/$archive" "$mirror/$version/$archive" &&
    fetch -o "$partial/SHASUMS256.txt" "$mirror/$version/SHASUMS256.txt" &&
    (cd "$partial" && sha256sum --check --ignore-missing SHASUMS256.txt) &&
    tar -xzf "$partial/$archive" -C "$partial/tree" --strip-components=1 --no-same-owner &&
    rm -rf "$node_home" && mv "$partial/tree" "$node_home" && rm -rf "$partial"
}

newest_lts() {
  tr -d '[:space:]' | tr '}' '\n' | sed -n '/"lts":false/!s/.*"version":"\(v[0-9.]*\)".*/\1/p' | sort -V | tail -n 1
}

# --- Code ---

# The clone that this script lies in. Inside an installed package that is the repository which depends on it.
find_clone() {
  [[ -f $script ]] || return
  server_dir=$(cd "$(dirname "$script")" && pwd -P)
  server_dir=${server_dir%%/node_modules/*}
  [[ -f $server_dir/package.json ]]
}

# A clone around this script belongs to whoever made it. The other one is ours: it follows PYWORKER_REPO and
# PYWORKER_REF, and moves along with a branch only when told to update, so that most starts need no network.
provide_code() {
  find_clone && return
  local update_flag=${UPDATE_FLAG:-/.force_update}
  server_dir=$WORKSPACE_DIR/vast-pyworker
  require git
  [[ -n ${PYWORKER_REPO:-} ]] || fail "PYWORKER_REPO must name the repository of the worker"
  export GIT_TERMINAL_PROMPT=0
  if [[ $(git -C "$server_dir" config remote.origin.url 2>/dev/null) != "$PYWORKER_REPO" ]]; then
    step "cloning ${PYWORKER_REPO##*@}" clone
  elif [[ -e $update_flag || $(wanted_commit "$server_dir") != $(git -C "$server_dir" rev-parse HEAD) ]]; then
    step "updating the code" update
  fi
  rm -f "$update_flag"
}

clone() {
  rm -rf "$server_dir.partial" &&
    git clone --quiet "$PYWORKER_REPO" "$server_dir.partial" && check_out "$server_dir.partial" &&
    rm -rf "$server_dir" && mv "$server_dir.partial" "$server_dir"
}

update() {
  git -C "$server_dir" fetch --quiet --force --tags --prune origin && check_out "$server_dir"
}

check_out() {
  local commit
  commit=$(wanted_commit "$1") || { echo "no branch, tag or commit is named ${PYWORKER_REF:-HEAD}" && return 1; }
  git -C "$1" -c advice.detachedHead=false checkout --force --detach "$commit"
}

wanted_commit() {
  local ref=${PYWORKER_REF:-HEAD}
  git -C "$1" rev-parse --quiet --verify "origin/$ref^{commit}" || git -C "$1" rev-parse --quiet --verify "$ref^{commit}"
}

# --- Packages and build ---

# Stamps say for what a step was last done. They are in node_modules, because npm ci begins by emptying that.
stamped() {
  [[ -f node_modules/$1 && $(<"node_modules/$1") == "$2" ]]
}

stamp() {
  mkdir -p node_modules
  printf '%s' "$2" >"node_modules/$1"
}

digest() {
  local path present=()
  for path; do
    [[ ! -e $path ]] || present+=("$path")
  done
  tar -cf - "${present[@]}" | sha256sum
}

install_packages() {
  local how=(ci) wanted
  [[ -f package-lock.json ]] || how=(install --no-package-lock)
  how+=(--include=dev --no-audit --no-fund "$@")
  wanted="${how[*]} $(digest package.json package-lock.json)"
  stamped .installed "$wanted" && return
  rm -f node_modules/.installed
  step "npm ${how[*]}" npm "${how[@]}"
  stamp .installed "$wanted"
}

# What was built is part of the stamp, so that a dist from elsewhere does not pass for it.
build() {
  stamped .built "$(digest package.json package-lock.json src dist)" && return
  step "npm run build" npm run build --if-present
  stamp .built "$(digest package.json package-lock.json src dist)"
}

find_worker() {
  local file files=("dist/$BACKEND.mjs" "workers/$BACKEND.mjs" "workers/$BACKEND.js" "workers/$BACKEND.ts") arguments=()
  if [[ $BACKEND == null ]]; then
    files=(dist/null-pyworker.mjs node_modules/.bin/null-pyworker) arguments=(worker)
  fi
  for file in "${files[@]}"; do
    [[ -f $file ]] || continue
    # A young generation of more than this grows the process under load, and saves it little work.
    worker=(node --max-semi-space-size=8 "$file" "${arguments[@]}")
    return
  done
  fail "BACKEND=$BACKEND has no worker in $server_dir: none of ${files[*]} is there"
}

# --- Certificate ---

provide_certificate() {
  certificate=${INSTANCE_CERT:-/etc/instance.crt}
  key=${INSTANCE_KEY:-/etc/instance.key}
  require openssl
  certificate_serves || step "having a certificate signed" have_certificate_signed
}

# For another day, at the address that the instance has now.
certificate_serves() {
  [[ -f $certificate.address && $(<"$certificate.address") == "${PUBLIC_IPADDR:-}" ]] &&
    certifies "$certificate" "$key" && openssl x509 -in "$certificate" -noout -checkend 86400 >/dev/null
}

certifies() {
  local public
  public=$(openssl x509 -in "$1" -noout -pubkey 2>/dev/null) && [[ $public == "$(openssl pkey -in "$2" -pubout 2>/dev/null)" ]]
}

have_certificate_signed() {
  local request
  request=$(umask 077 && openssl req -new -newkey rsa:2048 -nodes -keyout "$key.new" \
    -subj /C=US/ST=CA/CN=pyworker.vast.ai/ -addext subjectAltName=IP:0.0.0.0) || return
  fetch -o "$certificate.new" -H 'Content-Type: application/octet-stream' --data-binary @- \
    "${VAST_CONSOLE_URL:-https://console.vast.ai}/api/v0/sign_cert/?instance_id=$CONTAINER_ID" <<<"$request" || return
  certifies "$certificate.new" "$key.new" || { echo "the answer is no certificate of our key" && return 1; }
  mv "$key.new" "$key" && mv "$certificate.new" "$certificate" && printf '%s' "${PUBLIC_IPADDR:-}" >"$certificate.address"
}

# --- Supervision ---

child='' told='' interrupted=''

# Runs the worker until it ends by itself, is told to stop, or refuses its configuration (EX_CONFIG); a crash starts it again.
supervise() {
  local backoff=1 started code crash
  trap 'pass_on TERM' TERM
  trap 'pass_on INT' INT
  while [[ -z $told ]]; do
    log "starting ${worker[*]}"
    started=$SECONDS code=0
    attend "${worker[@]}" || code=$?
    if [[ -n $told || $code == 0 || $code == 78 ]]; then
      log "the worker ended with code $code"
      exit "$code"
    fi
    ((SECONDS - started < 60)) || backoff=1
    crash="the worker crashed with code $code, the next one starts in $backoff s"
    log "$crash"
    report "$crash" &
    attend sleep "$backoff" || true
    backoff=$((backoff < 15 ? 2 * backoff : 30))
  done
}

# Runs a command and gives its exit code once it is gone. A signal wakes bash's own wait earlier, hence the loop.
attend() {
  local code
  (trap - INT && exec "$@") & # bash would leave it deaf to INT
  child=$!
  [[ -z $told ]] || pass_on "$told"
  while true; do
    interrupted='' code=0
    wait "$child" || code=$?
    [[ -n $interrupted ]] || break
  done
  child=''
  return "$code"
}

pass_on() {
  told=$1 interrupted=yes
  [[ -z $child ]] || kill -s "$1" "$child" 2>/dev/null || true
}

main "$@"
