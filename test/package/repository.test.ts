import { execFileSync } from "node:child_process"
import { chmod, cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import { eventually, freePort, launch, listen, post } from "../e2e/harness.ts"

const project = fileURLToPath(new URL("../..", import.meta.url))

// What npm would install, without a registry: this package and its peers, from here.
const npm = `#!/bin/bash
[ "$1" = run ] && exit
mkdir -p node_modules/@effect
ln -sfn ${project} node_modules/null-pyworker
ln -sfn ${project}node_modules/effect node_modules/effect
ln -sfn ${project}node_modules/@effect/platform-node node_modules/@effect/platform-node
`

describe("a worker repository", () => {
  it("is deployed by start_server.sh, piped into bash, from nothing but its URL and the worker's name", async () => {
    execFileSync("npm", ["run", "--silent", "build:lib"], { cwd: project })
    const folder = await mkdtemp(join(tmpdir(), "repository-"))
    const repository = join(folder, "repository")
    await cp(join(project, "test/examples/repository"), repository, { recursive: true })
    const git = (...args: ReadonlyArray<string>) =>
      execFileSync("git", ["-C", repository, "-c", "user.name=a", "-c", "user.email=a@b", ...args], { stdio: "ignore" })
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "A worker")
    await mkdir(join(folder, "bin"))
    await writeFile(join(folder, "bin", "npm"), npm)
    await chmod(join(folder, "bin", "npm"), 0o755)

    await using autoscaler = await listen()
    const port = await freePort()
    await using instance = launch("bash", ["-c", `cat ${join(project, "start_server.sh")} | bash`], {
      PATH: `${join(folder, "bin")}:${dirname(process.execPath)}:${process.env.PATH}`,
      HOME: folder,
      WORKSPACE_DIR: join(folder, "workspace"),
      PYWORKER_REPO: `file://${repository}`,
      BACKEND: "greeter",
      USE_SSL: "false",
      UNSECURED: "true",
      CONTAINER_ID: "7",
      REPORT_ADDR: autoscaler.url,
      PUBLIC_IPADDR: "127.0.0.1",
      WORKER_PORT: String(port),
      [`VAST_TCP_PORT_${port}`]: String(port),
      WORKER_HTTP_PORT: String(await freePort()),
      NULL_CONTROL_PORT: String(await freePort()),
      UPDATE_FLAG: join(folder, "update")
    })
    await eventually("ready", () => autoscaler.to("/worker_status/").some(({ body }) => body.loadtime > 0)).catch((error) =>
      assert.fail(`${error}\n${instance.output()}`)
    )
    const answer = await post(`http://127.0.0.1:${port}/greet`, { auth_data: { url: "u" }, payload: { name: "Ada" } })
    assert.deepStrictEqual(answer, { status: 200, body: { result: "Hello Ada" } })
    // The script is the child of the bash that it was piped in.
    execFileSync("pkill", ["-TERM", "-P", String(instance.process.pid)])
    await instance.exit
    assert.match(await readFile(join(folder, "workspace", "debug.log"), "utf8"), /the worker ended with code 0/)
    await rm(folder, { recursive: true })
  })
})
