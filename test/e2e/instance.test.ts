import { copyFile, cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import { account } from "../../src/local/Local.ts"
import { command, eventually, freePort, launch, run } from "./harness.ts"

const script = fileURLToPath(new URL("../../start_server.sh", import.meta.url))

describe("an instance", () => {
  it("gets its certificate from the control plane, joins, is reserved over TLS, and stops", async () => {
    const folder = await mkdtemp(join(tmpdir(), "instance-"))
    const clone = join(folder, "clone")
    await cp(dirname(command), join(clone, "dist"), { recursive: true })
    await copyFile(script, join(clone, "start_server.sh"))
    await writeFile(join(clone, "package.json"), JSON.stringify({ name: "null-pyworker", type: "module" }))

    const planePort = String(await freePort())
    const url = `http://127.0.0.1:${planePort}`
    // It starts no workers of its own, so that the instance's is the one that is reserved.
    await using plane = run(["local", "--port", planePort, "--max-workers", "0"])
    await eventually("control plane", () => plane.output().includes("control plane on"))

    const port = String(await freePort())
    await using instance = launch("bash", [join(clone, "start_server.sh")], {
      HOME: folder,
      WORKSPACE_DIR: join(folder, "workspace"),
      BACKEND: "null",
      CONTAINER_ID: "5000",
      MASTER_TOKEN: account.masterToken,
      REPORT_ADDR: url,
      VAST_CONSOLE_URL: url,
      INSTANCE_CERT: join(folder, "instance.crt"),
      INSTANCE_KEY: join(folder, "instance.key"),
      PUBLIC_IPADDR: "127.0.0.1",
      WORKER_PORT: port,
      [`VAST_TCP_PORT_${port}`]: port,
      WORKER_HTTP_PORT: String(await freePort()),
      NULL_CONTROL_PORT: String(await freePort())
    })
    await eventually("ready", () => /worker ready.*worker=5000 url=https:/.test(plane.output())).catch((error) =>
      assert.fail(`${error}\n${instance.output()}\n${plane.output()}`)
    )
    await using client = run(["client", "--endpoint", account.endpoint.name, "--web", url, "--autoscaler", url, "--hold", "1"], {
      VAST_API_KEY: account.apiKey
    })
    assert.strictEqual(await client.exit, 0, client.output())
    assert.include(client.output(), `session reserved https://127.0.0.1:${port} after`)
    assert.strictEqual(await instance.stop("SIGTERM"), 0, instance.output())
    assert.match(await readFile(join(folder, "workspace", "debug.log"), "utf8"), /session closed.*reason=client/)
    assert.deepStrictEqual(await readdir(join(folder, "workspace", "null-pyworker")), ["worker-5000.sqlite"])
    await rm(folder, { recursive: true })
  })
})
