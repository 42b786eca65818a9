/**
 * start_server.sh as instances and laptops run it: the real script, on machines that hold nothing but the tools that it may
 * assume, with an autoscaler, a console, a Node mirror and a repository on loopback.
 */
import { type ChildProcess, execFileSync, spawn } from "node:child_process"
import { createHash } from "node:crypto"
import * as Fs from "node:fs"
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http"
import { type AddressInfo, createServer as createTcpServer } from "node:net"
import { tmpdir } from "node:os"
import { delimiter, dirname, join } from "node:path"
import { connect } from "node:tls"
import { fileURLToPath, pathToFileURL } from "node:url"
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest"

const project = fileURLToPath(new URL("../..", import.meta.url))
const script = join(project, "start_server.sh")

const coreutils = "cat date dirname head mkdir mv rm sha256sum sleep sort tail tee tr uname".split(" ")
const assumedTools = ["bash", ...coreutils, "curl", "git", "gzip", "openssl", "sed", "tar"]

const findTool = (name: string) =>
  (process.env.PATH ?? "")
    .split(delimiter)
    .map((folder) => join(folder, name))
    .find((path) => Fs.existsSync(path))

const write = (path: string, text: string, mode = 0o644) => {
  Fs.mkdirSync(dirname(path), { recursive: true })
  Fs.writeFileSync(path, text, { mode })
}

const read = (path: string) => (Fs.existsSync(path) ? Fs.readFileSync(path, "utf8") : "")

const until = async (holds: () => boolean, what: () => string) => {
  for (const start = Date.now(); !holds(); await new Promise((resolve) => setTimeout(resolve, 20))) {
    if (Date.now() - start > 20_000) throw new Error(what())
  }
}

// What a test has on the disk and running, and who signs its certificates.

const root = Fs.mkdtempSync(join(tmpdir(), "start_server-"))
const authority = { certificate: join(root, "authority.crt"), key: join(root, "authority.key") }
let folder: string
let servers: Array<Server>
let processes: Array<ChildProcess>

const openssl = (args: ReadonlyArray<string>, input = "") =>
  execFileSync("openssl", args, { input, stdio: ["pipe", "pipe", "ignore"], encoding: "utf8" })

beforeAll(() => {
  const { certificate, key } = authority
  openssl(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=test authority", "-keyout", key, "-out", certificate])
})

beforeEach(() => {
  folder = Fs.mkdtempSync(join(root, "test-"))
  servers = []
  processes = []
})

afterEach(() => {
  for (const { pid } of processes) {
    try {
      if (pid !== undefined) process.kill(-pid, "SIGKILL")
    } catch {
      // The group is gone, as it should be.
    }
  }
  for (const server of servers) {
    server.close()
    server.closeAllConnections()
  }
})

afterAll(() => Fs.rmSync(root, { recursive: true, force: true }))

interface Report {
  readonly id: number
  readonly mtoken: string
  readonly version: string
  readonly error_msg: string
  readonly url: string
}

const signDays = (days: number) => (csr: string) =>
  openssl(["x509", "-req", "-days", `${days}`, "-CA", authority.certificate, "-CAkey", authority.key, "-CAcreateserial"], csr)

/** The autoscaler, the console, and at `/node` a Node mirror. */
const startPlatform = async () => {
  const platform = {
    url: "",
    reports: [] as Array<Report>,
    signed: [] as Array<{ readonly instance: string | null; readonly contentType: string | undefined; readonly csr: string }>,
    sign: signDays(10) as (csr: string) => string | undefined,
    mirror: {} as Record<string, string | Buffer>,
    errors: () => platform.reports.map((report) => report.error_msg).filter((message) => message !== "")
  }
  const routes: Record<string, (body: string, url: URL, request: IncomingMessage) => string | Buffer | undefined> = {
    "/worker_status/": (body) => {
      platform.reports.push(JSON.parse(body))
      return "{}"
    },
    "/delete_requests/": () => "{}",
    "/pubkey/": () => openssl(["pkey", "-in", authority.key, "-pubout"]),
    "/api/v0/sign_cert/": (csr, { searchParams }, { headers }) => {
      platform.signed.push({ instance: searchParams.get("instance_id"), contentType: headers["content-type"], csr })
      return platform.sign(csr)
    }
  }
  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    const chunks: Array<Buffer> = []
    for await (const chunk of request) chunks.push(chunk)
    const url = new URL(request.url ?? "", platform.url)
    const body = routes[url.pathname]?.(Buffer.concat(chunks).toString(), url, request) ?? platform.mirror[url.pathname]
    response.writeHead(body === undefined ? 403 : 200).end(body)
  }
  const server = createServer(answer)
  servers.push(server)
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  platform.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  return platform
}

type Platform = Awaited<ReturnType<typeof startPlatform>>

/** Keeps a record of its calls. To install is to empty node_modules and to let scripts bring a Node; to build is to copy src. */
const fakeNpm = (record: string) => `#!/usr/bin/env bash
PATH='${process.env.PATH}'
echo "$*" >>'${record}'
case $1 in
  ci)
    rm -rf node_modules && mkdir -p node_modules/.bin
    [[ $* == *--ignore-scripts* ]] || ln -s '${process.execPath}' node_modules/.bin/node
    ;;
  run) [[ ! -d src ]] || { mkdir -p dist && cp src/* dist/; } ;;
esac
`

/** A machine with the tools that the script may assume, and with Node and npm unless told otherwise. */
const makeMachine = (platform: Platform, has: { readonly node?: "none" | "old"; readonly without?: string } = {}) => {
  const bin = join(folder, "bin")
  const workspace = join(folder, "workspace")
  const npmCalls = join(folder, "npm-calls")
  const npm = fakeNpm(npmCalls)
  Fs.mkdirSync(bin)
  for (const tool of assumedTools) {
    const path = findTool(tool)
    if (path === undefined) throw new Error(`these tests need ${tool}`)
    if (tool !== has.without) Fs.symlinkSync(path, join(bin, tool))
  }
  if (has.node === undefined) Fs.symlinkSync(process.execPath, join(bin, "node"))
  if (has.node === "old") write(join(bin, "node"), "#!/usr/bin/env bash\necho v20.20.2\n", 0o755)
  if (has.node !== "none") write(join(bin, "npm"), npm, 0o755)

  const env: Record<string, string | undefined> = {
    PATH: bin,
    HOME: folder,
    WORKSPACE_DIR: workspace,
    UPDATE_FLAG: join(folder, "force_update"),
    CONTAINER_ID: "4711",
    MASTER_TOKEN: "master-secret",
    BACKEND: "null",
    REPORT_ADDR: platform.url,
    VAST_CONSOLE_URL: platform.url,
    NODE_MIRROR: `${platform.url}/node`,
    INSTANCE_CERT: join(folder, "instance.crt"),
    INSTANCE_KEY: join(folder, "instance.key"),
    USE_SSL: "false",
    PUBLIC_IPADDR: "127.0.0.1",
    VAST_TCP_PORT_3000: "40000"
  }

  /** Runs the script as the leader of a process group, as supervisord does: from a clone, or piped into bash. */
  const start = (how: { readonly clone?: string; readonly args?: ReadonlyArray<string> } = {}) => {
    const { clone, args = [] } = how
    const child = spawn(join(bin, "bash"), clone === undefined ? ["-s", ...args] : [join(clone, "start_server.sh"), ...args], {
      cwd: folder,
      env,
      detached: true
    })
    processes.push(child)
    child.stdin.end(clone === undefined ? Fs.readFileSync(script) : "")
    const run = {
      output: "",
      code: undefined as number | NodeJS.Signals | undefined,
      ended: () =>
        until(
          () => run.code !== undefined,
          () => `still running:\n${run.output}`
        ),
      says: async (words: string) => {
        const said = () => run.output.includes(words)
        await until(
          () => said() || run.code !== undefined,
          () => `not said: ${words}\n${run.output}`
        )
        if (!said()) throw new Error(`ended with ${run.code} before ${words}:\n${run.output}`)
      },
      signal: (signal: NodeJS.Signals) => process.kill(child.pid as number, signal),
      signalGroup: (signal: NodeJS.Signals) => process.kill(-(child.pid as number), signal)
    }
    child.stdout.on("data", (chunk) => (run.output += chunk))
    child.stderr.on("data", (chunk) => (run.output += chunk))
    child.on("close", (code, signal) => (run.code = code ?? signal ?? undefined))
    return run
  }

  return {
    bin,
    npm,
    env,
    start,
    path: (name: string) => join(workspace, name),
    npmCalls: () =>
      read(npmCalls)
        .trim()
        .split("\n")
        .map((call) => call.split(" ").slice(0, 2).join(" ")),
    /** Starts it, waits until it says so, stops it. */
    startAndStop: async (words: string, how?: Parameters<typeof start>[0]) => {
      const run = start(how)
      await run.says(words)
      run.signalGroup("SIGTERM")
      await run.ended()
      expect(run.code, run.output).toBe(0)
      return run
    },
    /** Starts it and waits for its end. */
    startAndFail: async (how?: Parameters<typeof start>[0]) => {
      const run = start(how)
      await run.ended()
      expect(run.code, run.output).toBe(1)
      return run
    }
  }
}

type Machine = ReturnType<typeof makeMachine>

const worker = (words: string) => `
process.on("SIGTERM", () => {
  console.log("told to stop")
  setTimeout(() => {
    console.log("last words")
    process.exit(0)
  }, 200)
})
console.log(${JSON.stringify(words)}, process.argv.slice(2).join(" "))
setInterval(() => {}, 1000)
`

const packageWith = (files: Record<string, string>) => ({
  "package.json": JSON.stringify({ name: "a-worker", type: "module" }),
  "package-lock.json": "{}",
  ...files
})

const nullWorker = (source = worker("at work")) => packageWith({ "src/null-pyworker.mjs": source })

/** A clone with the script in it. */
const makeClone = (files: Record<string, string>) => {
  const clone = join(folder, "clone")
  for (const [path, text] of Object.entries(files)) write(join(clone, path), text)
  Fs.copyFileSync(script, join(clone, "start_server.sh"))
  return clone
}

/** A repository to clone from, with one commit on its main branch. */
const makeRepository = (files: Record<string, string>) => {
  const work = join(folder, "work")
  const bare = join(folder, "repository.git")
  const git = (...args: ReadonlyArray<string>) =>
    execFileSync("git", ["-C", work, "-c", "user.name=test", "-c", "user.email=test@localhost", ...args], {
      encoding: "utf8",
      stdio: ["ignore", "pipe", "ignore"]
    }).trim()
  const commit = (files: Record<string, string>) => {
    for (const [path, text] of Object.entries(files)) write(join(work, path), text)
    git("add", "--all")
    git("commit", "--message", "a commit")
    git("push", bare, "HEAD:main")
    return git("rev-parse", "HEAD")
  }
  Fs.mkdirSync(work)
  git("init")
  git("init", "--bare", bare)
  git("--git-dir", bare, "symbolic-ref", "HEAD", "refs/heads/main")
  return { bare, url: pathToFileURL(bare).href, commit, first: commit(files) }
}

/** Puts a Node of our own making on the mirror, beside newer ones that are no LTS and an LTS that only sorts above it as text. */
const publishNode = (platform: Platform, machine: Machine, checksum?: string) => {
  const name = `node-v24.10.0-linux-${process.arch}`
  const node = `#!/usr/bin/env bash\nif [[ $1 == --version ]]; then echo v24.10.0; else exec '${process.execPath}' "$@"; fi\n`
  write(join(folder, name, "bin/node"), node, 0o755)
  write(join(folder, name, "bin/npm"), machine.npm, 0o755)
  const archive = execFileSync("tar", ["-czf", "-", "-C", folder, name])
  const release = (version: string, lts: string | false) => JSON.stringify({ version, files: [`linux-${process.arch}`], lts })
  const releases = [
    release("v25.1.0", false),
    release("v24.9.0", "Krypton"),
    release("v24.10.0", "Krypton"),
    release("v22.30.0", "Jod")
  ]
  const sum = checksum ?? createHash("sha256").update(archive).digest("hex")
  platform.mirror["/node/index.json"] = `[\n${releases.join(",\n")}\n]\n`
  platform.mirror[`/node/v24.10.0/${name}.tar.gz`] = archive
  platform.mirror["/node/v24.10.0/SHASUMS256.txt"] = `${"0".repeat(64)}  node-v24.10.0.pkg\n${sum}  ${name}.tar.gz\n`
}

const freePort = () =>
  new Promise<string>((resolve) => {
    const server = createTcpServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address() as AddressInfo
      server.close(() => resolve(`${port}`))
    })
  })

describe("the code", () => {
  it("is cloned at PYWORKER_REF when the script is piped into bash", async () => {
    const platform = await startPlatform()
    const machine = makeMachine(platform)
    const repository = makeRepository(nullWorker(worker("first")))
    repository.commit(nullWorker(worker("second")))
    Object.assign(machine.env, { PYWORKER_REPO: repository.url, PYWORKER_REF: repository.first })

    await machine.startAndStop("first worker")

    expect(machine.npmCalls()).toEqual(["ci --include=dev", "run build"])
    expect(Fs.readdirSync(machine.path(""))).toEqual(["debug.log", "vast-pyworker"])
    expect(platform.reports).toEqual([])
  })

  it("needs neither network nor npm when the instance starts again", async () => {
    const machine = makeMachine(await startPlatform())
    const repository = makeRepository(nullWorker())
    Object.assign(machine.env, { PYWORKER_REPO: repository.url, PYWORKER_REF: "main" })
    await machine.startAndStop("at work")
    const calls = machine.npmCalls()
    Fs.rmSync(repository.bare, { recursive: true })

    await machine.startAndStop("at work")

    expect(machine.npmCalls()).toEqual(calls)
  })

  it("is built again, but not installed, when only the sources changed", async () => {
    const machine = makeMachine(await startPlatform())
    const clone = makeClone(nullWorker(worker("first")))
    await machine.startAndStop("first worker", { clone })
    write(join(clone, "src/null-pyworker.mjs"), worker("second"))

    await machine.startAndStop("second worker", { clone })

    expect(machine.npmCalls()).toEqual(["ci --include=dev", "run build", "run build"])
  })

  it("is installed by npm install where there is no lock file", async () => {
    const machine = makeMachine(await startPlatform())
    const clone = makeClone({ "package.json": "{}", "src/null-pyworker.mjs": worker("at work") })
    await machine.startAndStop("at work", { clone })
    expect(machine.npmCalls()).toEqual(["install --no-package-lock", "run build"])
  })

  it("moves to another PYWORKER_REF", async () => {
    const machine = makeMachine(await startPlatform())
    const repository = makeRepository(nullWorker(worker("first")))
    Object.assign(machine.env, { PYWORKER_REPO: repository.url })
    await machine.startAndStop("first worker")
    machine.env.PYWORKER_REF = repository.commit(nullWorker(worker("second")))

    await machine.startAndStop("second worker")
  })

  it("moves along with its branch once it is told to update", async () => {
    const machine = makeMachine(await startPlatform())
    const repository = makeRepository(nullWorker(worker("first")))
    Object.assign(machine.env, { PYWORKER_REPO: repository.url, PYWORKER_REF: "main" })
    await machine.startAndStop("first worker")
    repository.commit(nullWorker(worker("second")))
    await machine.startAndStop("first worker")
    const flag = join(folder, "force_update")
    write(flag, "")

    await machine.startAndStop("second worker")

    expect(Fs.existsSync(flag)).toBe(false)
  })

  it("survives a start that was killed while it was cloned", async () => {
    const machine = makeMachine(await startPlatform())
    Object.assign(machine.env, { PYWORKER_REPO: makeRepository(nullWorker()).url })
    write(machine.path("vast-pyworker.partial/.git/HEAD"), "ref: nowhere")
    await machine.startAndStop("at work")
  })
})

describe("the worker", () => {
  it("gets the defaults of an instance", async () => {
    const machine = makeMachine(await startPlatform())
    const source = `${worker("at work")};console.log("env", process.env.USE_SSL, process.env.WORKER_PORT, process.env.UNSECURED)`
    Object.assign(machine.env, { USE_SSL: "", UNSECURED: undefined })
    await machine.startAndStop("env true 3000 false", { clone: makeClone(nullWorker(source)) })
  })

  it("is the one that BACKEND names", async () => {
    const machine = makeMachine(await startPlatform())
    const source = `const words: string = "typed";${worker("at work")}`
    machine.env.BACKEND = "my-model_2"
    await machine.startAndStop("at work", { clone: makeClone(packageWith({ "workers/my-model_2.ts": source })) })
  })

  it("comes from the null-pyworker package, script and all, in a repository that depends on it", async () => {
    const machine = makeMachine(await startPlatform())
    const dependent = join(folder, "dependent")
    const installed = join(dependent, "node_modules/null-pyworker")
    write(join(dependent, "package.json"), "{}")
    Fs.mkdirSync(join(dependent, "node_modules/.bin"), { recursive: true })
    Fs.renameSync(makeClone({ "package.json": "{}", "cli.mjs": worker("at work") }), installed)
    Fs.symlinkSync("../null-pyworker/cli.mjs", join(dependent, "node_modules/.bin/null-pyworker"))
    await machine.startAndStop("at work worker", { clone: installed })
  })

  it("is told to stop by SIGTERM and by SIGINT, and its exit code is the script's", async () => {
    const machine = makeMachine(await startPlatform())
    const source = `
      process.on("SIGTERM", () => process.exit(0))
      process.on("SIGINT", () => process.exit(41))
      console.log("at work")
      setInterval(() => {}, 1000)`
    const clone = makeClone(nullWorker(source))
    for (const [signal, code] of [
      ["SIGTERM", 0],
      ["SIGINT", 41]
    ] as const) {
      const run = machine.start({ clone })
      await run.says("at work\n")
      const told = Date.now()
      run.signal(signal)
      await run.ended()
      expect(run.code).toBe(code)
      expect(Date.now() - told).toBeLessThan(2000)
    }
  })

  it("has its last words in the log although the whole group is signalled", async () => {
    const machine = makeMachine(await startPlatform())
    const run = await machine.startAndStop("at work", { clone: makeClone(nullWorker()) })
    expect(run.output).toContain("last words")
    expect(read(machine.path("debug.log"))).toBe(run.output)
  })

  it("starts again after a crash, each time a little later, and the autoscaler hears of it", async () => {
    const platform = await startPlatform()
    const machine = makeMachine(platform)
    const run = machine.start({ clone: makeClone(nullWorker(`console.log("crashes", Date.now()); process.exit(3)`)) })
    await run.says("starts in 4 s")
    run.signal("SIGTERM")
    await run.ended()

    const [first = 0, second = 0, third = 0] = [...run.output.matchAll(/crashes (\d+)/g)].map((match) => Number(match[1]))
    expect(second - first).toBeGreaterThan(1000)
    expect(third - second).toBeGreaterThan(2000)
    expect(platform.errors()[0]).toContain("crashed with code 3")
    expect(run.code).toBe(0)
  })

  it("does not start again when the script is stopped meanwhile", async () => {
    const machine = makeMachine(await startPlatform())
    for (const signal of ["SIGTERM", "SIGINT"] as const) {
      const run = machine.start({ clone: makeClone(nullWorker(`console.log("crashes"); process.exit(3)`)) })
      await run.says("starts in 4 s")
      const told = Date.now()
      run.signal(signal)
      await run.ended()
      expect(Date.now() - told).toBeLessThan(2000)
      expect(run.code).toBe(0)
    }
  })

  it.each([0, 78])("is not started again when it ends with %i", async (code) => {
    const platform = await startPlatform()
    const run = makeMachine(platform).start({ clone: makeClone(nullWorker(`process.exit(${code})`)) })
    await run.ended()
    expect(run.code).toBe(code)
    expect(run.output.split("starting node")).toHaveLength(2)
    expect(platform.reports).toEqual([])
  })
})

describe("the certificate", () => {
  const certified = (machine: Machine) => {
    machine.env.USE_SSL = "true"
    return machine
  }

  it("is signed by the console, and the worker serves TLS with it", async () => {
    const platform = await startPlatform()
    const machine = certified(makeMachine(platform))
    const clone = makeClone({ "package.json": Fs.readFileSync(join(project, "package.json"), "utf8"), "package-lock.json": "{}" })
    Fs.cpSync(join(project, "dist"), join(clone, "dist"), { recursive: true })
    const port = await freePort()
    Object.assign(machine.env, { WORKER_PORT: port, WORKER_HTTP_PORT: await freePort(), NULL_CONTROL_PORT: await freePort() })
    Object.assign(machine.env, { [`VAST_TCP_PORT_${port}`]: port, UNSECURED: "true" })
    const run = machine.start({ clone })
    await until(
      () => platform.reports.length > 0 || run.code !== undefined,
      () => run.output
    )

    const served = await new Promise<string | Array<string> | undefined>((resolve, reject) => {
      const socket = connect(
        { port: Number(port), ca: read(authority.certificate), checkServerIdentity: () => undefined },
        () => {
          resolve(socket.getPeerCertificate().subject.CN)
          socket.destroy()
        }
      ).on("error", reject)
    })
    run.signalGroup("SIGTERM")
    await run.ended()

    expect(served).toBe("pyworker.vast.ai")
    expect(run.code).toBe(0)
    expect(Fs.statSync(join(folder, "instance.key")).mode & 0o777).toBe(0o600)
    expect(platform.signed).toHaveLength(1)
    expect(platform.signed[0]).toMatchObject({ instance: "4711", contentType: "application/octet-stream" })
    const request = openssl(["req", "-noout", "-text"], platform.signed[0]?.csr)
    expect(request).toContain("Public-Key: (2048 bit)")
    expect(request).toContain("IP Address:0.0.0.0")
    expect(request).toMatch(/C *= *US, ST *= *CA, CN *= *pyworker\.vast\.ai/)
  })

  it("is used again until it expires, or the instance has another address or key", async () => {
    const platform = await startPlatform()
    const machine = certified(makeMachine(platform))
    const clone = makeClone(nullWorker())
    const signedAfter = async (change: () => void) => {
      change()
      await machine.startAndStop("at work", { clone })
      return platform.signed.length
    }
    expect(await signedAfter(() => {})).toBe(1)
    expect(await signedAfter(() => {})).toBe(1)
    expect(await signedAfter(() => (machine.env.PUBLIC_IPADDR = "127.0.0.2"))).toBe(2)
    expect(await signedAfter(() => Fs.copyFileSync(authority.key, join(folder, "instance.key")))).toBe(3)
    platform.sign = signDays(1)
    expect(await signedAfter(() => Fs.rmSync(join(folder, "instance.crt")))).toBe(4)
    expect(await signedAfter(() => {})).toBe(5)
  })
})

describe("Node", () => {
  it("is installed from the mirror, the newest LTS, once", async () => {
    const platform = await startPlatform()
    const machine = makeMachine(platform, { node: "old" })
    publishNode(platform, machine)
    const clone = makeClone(nullWorker())
    await machine.startAndStop("at work", { clone })
    expect(Fs.readdirSync(machine.path(""))).toEqual(["debug.log", "node"])
    platform.mirror = {}

    await machine.startAndStop("at work", { clone })
  })

  it("is not installed when its checksum is another", async () => {
    const platform = await startPlatform()
    const machine = makeMachine(platform, { node: "none" })
    publishNode(platform, machine, "f".repeat(64))
    await machine.startAndFail({ clone: makeClone(nullWorker()) })
    expect(platform.errors()).toHaveLength(1)
    expect(platform.errors()[0]).toContain("checksum did NOT match")
    expect(Fs.existsSync(machine.path("node"))).toBe(false)
  })
})

describe("a failure", () => {
  it.each<[string, Record<string, string | undefined>, string]>([
    ["a missing CONTAINER_ID", { CONTAINER_ID: undefined }, "CONTAINER_ID must be"],
    ["a missing BACKEND", { BACKEND: undefined }, "BACKEND must be"],
    ["a BACKEND that is a path", { BACKEND: "../null" }, "BACKEND must be"],
    [
      "a BACKEND without a worker",
      { BACKEND: "other" },
      "none of dist/other.mjs workers/other.mjs workers/other.js workers/other.ts"
    ],
    ["a refused certificate", { USE_SSL: "true" }, "error: 403"]
  ])("is reported, and ends the script: %s", async (_, env, reason) => {
    const platform = await startPlatform()
    platform.sign = () => undefined
    const machine = makeMachine(platform)
    Object.assign(machine.env, env)

    const run = await machine.startAndFail({ clone: makeClone(nullWorker()) })

    expect(platform.reports).toEqual([
      {
        id: env.CONTAINER_ID === undefined && "CONTAINER_ID" in env ? 0 : 4711,
        mtoken: "master-secret",
        version: "1.1.0",
        error_msg: expect.stringContaining(reason),
        url: `${env.USE_SSL === "true" ? "https" : "http"}://127.0.0.1:40000`
      }
    ])
    expect(run.output).toContain(reason)
    expect(run.output).not.toContain("master-secret")
  })

  it("is reported for a repository that cannot be cloned, with git's own words", async () => {
    const platform = await startPlatform()
    const machine = makeMachine(platform)
    machine.env.PYWORKER_REPO = pathToFileURL(join(folder, 'no "such"\trepository')).href
    await machine.startAndFail()
    expect(platform.errors()[0]).toMatch(/^cloning .* failed: .*fatal: .*\n/s)
    expect(Fs.readdirSync(machine.path(""))).toEqual(["debug.log"])
  })

  it("is reported for a PYWORKER_REF that names nothing", async () => {
    const platform = await startPlatform()
    const machine = makeMachine(platform)
    Object.assign(machine.env, { PYWORKER_REPO: makeRepository(nullWorker()).url, PYWORKER_REF: 'odd "name"\\' })
    await machine.startAndFail()
    expect(platform.errors()[0]).toContain('no branch, tag or commit is named odd "name"\\')
  })

  it("is reported for packages that cannot be installed, and the next start installs them", async () => {
    const platform = await startPlatform()
    const machine = makeMachine(platform)
    const clone = makeClone(nullWorker())
    const npm = join(machine.bin, "npm")
    write(npm, "#!/usr/bin/env bash\necho npm error code EUSAGE\nfor _ in {1..50}; do echo help; done\nexit 1\n", 0o755)
    await machine.startAndFail({ clone })
    expect(platform.errors()).toEqual([expect.stringMatching(/^npm ci .* failed: npm error code EUSAGE$/)])
    write(npm, machine.npm, 0o755)
    await machine.startAndStop("at work", { clone })
  })

  it("is reported for a certificate of another key", async () => {
    const platform = await startPlatform()
    platform.sign = () => read(authority.certificate)
    const machine = makeMachine(platform)
    machine.env.USE_SSL = "true"
    await machine.startAndFail({ clone: makeClone(nullWorker()) })
    expect(platform.errors()[0]).toContain("no certificate of our key")
    expect(Fs.existsSync(join(folder, "instance.crt"))).toBe(false)
  })

  it("is reported for a tool that is not there", async () => {
    const platform = await startPlatform()
    const machine = makeMachine(platform, { without: "git" })
    machine.env.PYWORKER_REPO = "anywhere"
    await machine.startAndFail()
    expect(platform.errors()).toEqual(["git is not installed"])
  })

  it("is reported to the first autoscaler that answers", async () => {
    const platform = await startPlatform()
    const machine = makeMachine(platform)
    Object.assign(machine.env, {
      BACKEND: "",
      REPORT_ADDR: `http://127.0.0.1:${await freePort()}, ${platform.url}/,${platform.url}`
    })
    await machine.startAndFail()
    expect(platform.reports).toHaveLength(1)
  })
})

describe("local", () => {
  const demo = packageWith({ "src/null-pyworker.mjs": `console.log("demo:", ...process.argv.slice(2)); process.exitCode = 7` })
  const local = { args: ["local", "--for", "2 s"] }

  it("runs the demo out of a clone and ends with its code, installing and building once", async () => {
    const platform = await startPlatform()
    const machine = makeMachine(platform)
    machine.env.CONTAINER_ID = undefined
    const clone = makeClone(demo)
    for (const _ of ["first", "second"]) {
      const run = machine.start({ clone, ...local })
      await run.ended()
      expect(run.output).toContain("demo: local --demo --for 2 s\n")
      expect(run.code).toBe(7)
    }
    expect(machine.npmCalls()).toEqual(["ci --include=dev", "run build"])
    expect(Fs.existsSync(machine.path("debug.log"))).toBe(false)
    expect(platform.reports).toEqual([])
  })

  it("runs on the Node that npm brings where there is only an old one", async () => {
    const machine = makeMachine(await startPlatform(), { node: "old" })
    const run = machine.start({ clone: makeClone(demo), ...local })
    await run.ended()
    expect(run.output).toContain("demo: local")
    expect(Fs.existsSync(machine.path("node"))).toBe(false)
  })

  it("installs Node in the user's cache where there is neither Node nor npm", async () => {
    const platform = await startPlatform()
    const machine = makeMachine(platform, { node: "none" })
    machine.env.WORKSPACE_DIR = undefined
    publishNode(platform, machine)
    const run = machine.start({ clone: makeClone(demo), ...local })
    await run.ended()
    expect(run.output).toContain("demo: local")
    expect(Fs.existsSync(join(folder, ".cache/null-pyworker/node/bin/node"))).toBe(true)
  })

  it("fails without a clone, and reports nothing", async () => {
    const platform = await startPlatform()
    const run = await makeMachine(platform).startAndFail({ args: ["local"] })
    expect(run.output).toContain("needs a clone")
    expect(platform.reports).toEqual([])
  })
})

const shellcheck = findTool("shellcheck")

it("satisfies shellcheck", (context) => {
  if (shellcheck === undefined && !process.env.CI) context.skip("shellcheck is not installed")
  expect(execFileSync(shellcheck ?? "shellcheck", [script], { encoding: "utf8" })).toBe("")
})
