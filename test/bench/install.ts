/**
 * From a clone to a ready worker: start_server.sh on an instance that has Node, git and nothing of ours.
 */
import { execFileSync, spawnSync } from "node:child_process"
import * as Fs from "node:fs"
import { delimiter, dirname, join } from "node:path"
import { pathToFileURL } from "node:url"
import { startAutoscaler } from "./autoscaler.ts"
import type { Bench } from "./rows.ts"
import { folder, instance, isReady, launch, ours, peer, project, python, start, theirs } from "./subjects.ts"
import { figures, type Row } from "./table.ts"

const git = (...args: ReadonlyArray<string>) => execFileSync("git", ["-C", project, ...args], { encoding: "utf8" })

// What npm tells the scripts that it runs is about this project, not about the clone.
const surroundings = () =>
  Object.fromEntries(
    Object.entries(process.env).filter(
      ([name]) => !/^npm_(package|lifecycle|config_(local|global)?_?prefix)|^npm_execpath/.test(name)
    )
  )

/** Seconds until a worker is ready that start_server.sh, as it is committed, starts in this workspace. */
const startServer = async (workspace: string, cache: string) => {
  const autoscaler = await startAutoscaler()
  const { env } = await instance(autoscaler)
  const log = join(workspace, "start.log")
  const ready = autoscaler.next("/worker_status/", ({ body }) => body.error_msg !== "" || isReady({ body }), 300)
  const started = performance.now()
  const script = launch("bash", ["-s"], {
    cwd: workspace,
    input: git("show", "HEAD:start_server.sh"),
    log,
    env: {
      ...surroundings(),
      ...env,
      PATH: [dirname(process.execPath), process.env.PATH].join(delimiter),
      WORKSPACE_DIR: workspace,
      UPDATE_FLAG: join(workspace, "force_update"),
      PYWORKER_REPO: pathToFileURL(project).href,
      BACKEND: "null",
      USE_SSL: "false",
      VAST_CONSOLE_URL: autoscaler.url,
      npm_config_cache: cache
    }
  })
  try {
    const { at, body } = await ready
    if (body.error_msg !== "") throw new Error(`${body.error_msg}\n${Fs.readFileSync(log, "utf8")}`)
    return (at - started) / 1000
  } finally {
    await script.stop()
    autoscaler.close()
  }
}

/** Seconds until the original is ready in a virtual environment that is made for it. */
const installOriginal = async (home: string, cache: string) => {
  const started = performance.now()
  const environment = join(home, "venv")
  execFileSync(python, ["-m", "venv", environment])
  const pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", `vastai==${peer.vastai}`]
  const installed = spawnSync(join(environment, "bin/python"), pip, {
    env: { ...process.env, PIP_CACHE_DIR: cache },
    encoding: "utf8"
  })
  if (installed.status !== 0) throw new Error(installed.stderr)
  const seconds = (performance.now() - started) / 1000
  const program = () => ({ ...theirs.program(home), command: join(environment, "bin/python") })
  await using running = await start({ ...theirs, program })
  return seconds + (running.readyAfter ?? 0) / 1000
}

export const install = async ({ quick }: Bench): Promise<Row> => {
  const { add, lines, notRun } = figures([ours, theirs])
  const [empty, full, restart] = ["clone to ready, empty package cache", "clone to ready, full package cache", "restart to ready"]
  for (let round = 0; round < (quick ? 1 : 2); round++) {
    const at = Fs.mkdtempSync(join(folder, "install-"))
    const workspace = (name: string) => Fs.mkdtempSync(join(at, name))
    const caches = { npm: join(at, "npm-cache"), pip: join(at, "pip-cache") }
    const original = theirs.notRun === undefined && !quick
    const used = workspace("empty-")
    add(empty, "s", ours, await startServer(used, caches.npm))
    if (original) add(empty, "s", theirs, await installOriginal(workspace("theirs-empty-"), caches.pip))
    add(full, "s", ours, await startServer(workspace("full-"), caches.npm))
    if (original) add(full, "s", theirs, await installOriginal(workspace("theirs-full-"), caches.pip))
    for (let again = 0; again < (quick ? 2 : 5); again++) add(restart, "s", ours, await startServer(used, caches.npm))
    Fs.rmSync(at, { recursive: true })
  }
  if (quick) for (const line of [empty, full]) notRun(line, theirs, "quick")
  notRun(restart, theirs, "its start script is not here")
  return {
    title: "Install and restart",
    lines: lines(),
    notes: [
      `ours: start_server.sh of ${git("rev-parse", "--short", "HEAD").trim()} with a clone over file://; Node is there already`,
      "theirs: a virtual environment, pip install vastai, start"
    ]
  }
}
