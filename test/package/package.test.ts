/**
 * The package as npm would publish it, in an empty project of somebody else.
 */
import { execFile } from "node:child_process"
import { mkdir, mkdtemp, readFile, rm, stat, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import pkg from "../../package.json" with { type: "json" }
import { eventually, listen, post, startWorker } from "../e2e/harness.ts"

const repository = fileURLToPath(new URL("../..", import.meta.url))
const here = (path: string) => join(repository, path)
const tool = (name: string) => here(`.ci/tools/node_modules/.bin/${name}`)

/** Runs a program to its end and gives what it printed; if it fails, so does the test, with all that was printed. */
const run = async (program: string, args: ReadonlyArray<string>, cwd = project) => {
  const { stdout } = await promisify(execFile)(program, args, { cwd }).catch((error) => {
    throw new Error(`${error.message}\n${error.stdout}${error.stderr}`)
  })
  return stdout
}

let project: string
let tarball: string
let packed: ReadonlyArray<string>

beforeAll(async () => {
  project = await mkdtemp(join(tmpdir(), "package-"))
  const [{ filename, files }] = JSON.parse(await run("npm", ["pack", "--json", "--pack-destination", project], repository))
  tarball = join(project, filename)
  packed = files.map(({ path }: { readonly path: string }) => path)
  await writeFile(join(project, "package.json"), JSON.stringify({ private: true, type: "module" }))
  await run("npm", ["install", "--offline", "--legacy-peer-deps", "--no-audit", "--no-fund", tarball])
})

afterAll(() => rm(project, { recursive: true }))

describe("the tarball", () => {
  it("holds what was built and what starts it", async () => {
    const besides = packed.filter((path) => !/^dist\/lib\/[\w/]+\.(js|d\.ts)$/.test(path))
    const [command, others] = [besides.filter((path) => path.endsWith(".mjs")), besides.filter((path) => !path.endsWith(".mjs"))]
    assert.include(command, "dist/null-pyworker.mjs")
    assert.isTrue(command.every((path) => /^dist\/[\w-]+\.mjs$/.test(path)))
    assert.sameMembers(others, ["LICENSE", "README.md", "package.json", "start_server.sh"])
    assert.isBelow((await stat(tarball)).size, 2_000_000)
  })

  it("is a package by the rules", async () => {
    await run(tool("publint"), [tarball, "--strict"])
    await run(tool("attw"), [tarball, "--profile", "esm-only"])
  })

  it("has a command that needs nothing else", async () => {
    assert.include(await run("node_modules/.bin/null-pyworker", ["--version"]), pkg.version)
  })
})

describe("the library", () => {
  // From here rather than a registry, which a test should not depend on.
  beforeAll(async () => {
    for (const name of [...Object.keys(pkg.peerDependencies), "@types/node"]) {
      const link = join(project, "node_modules", name)
      await mkdir(dirname(link), { recursive: true })
      await symlink(here(`node_modules/${name}`), link)
    }
  })

  it("is imported by its two names only, and needs no more than its peers", async () => {
    const report = `for (const name of ["", "/testing", "/dist/lib/config.js", "/worker/Worker"])
      console.log(await import("null-pyworker" + name).then(() => "ok", ({ code }) => code))`
    const refused = "ERR_PACKAGE_PATH_NOT_EXPORTED"
    const said = await run(process.execPath, ["--input-type=module", "--eval", report])
    assert.deepStrictEqual(said.trim().split("\n"), ["ok", "ok", refused, refused])
  })

  it("makes the README's worker", async () => {
    const readme = await readFile(here("README.md"), "utf8")
    const [, example = "", file = ""] = readme.match(/```ts\n(\/\/ (workers\/[^\n]*)\n.*?)```/s) ?? []
    const modelLoaded = join(project, "model-loaded")
    assert.include(example, "/workspace/model-loaded")
    await mkdir(join(project, dirname(file)), { recursive: true })
    await writeFile(join(project, file), example.replace("/workspace/model-loaded", modelLoaded))
    const strict = ["--strict", "--exactOptionalPropertyTypes", "--noEmit", "--types", "node"]
    await run(here("node_modules/.bin/tsc"), [...strict, "--target", "es2024", "--module", "nodenext", file])

    await using autoscaler = await listen()
    await using worker = await startWorker(autoscaler, {}, [join(project, file)])
    const { output, url } = worker
    await eventually("waiting for the model", () => output().includes("waiting for the consumer"))
    await writeFile(modelLoaded, "")
    await eventually("ready", () => autoscaler.to("/worker_status/").some(({ body }) => body.loadtime > 0))
    const auth_data = { url, cost: 5, request_idx: 1, signature: "", endpoint: "shout", reqnum: 1 }
    assert.deepStrictEqual(await post(`${url}/shout`, { auth_data, payload: { text: "hello" } }), {
      status: 200,
      body: { result: "HELLO" }
    })
    assert.strictEqual((await post(`${url}/shout`, { auth_data, payload: { text: 7 } })).status, 422)
    assert.strictEqual(await worker.stop("SIGTERM"), 0)
  })
})
