/**
 * Worker processes on this machine, as an instance would run them: the built command, an environment, ports of its own.
 */
import { createServer } from "node:net"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as ChildProcess from "effect/process/ChildProcess"
import { ChildProcessSpawner } from "effect/process/ChildProcessSpawner"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { DevCertificates } from "./DevCertificates.ts"
import { Fleet } from "./Fleet.ts"

const killAfter = Duration.seconds(10)
const host = "127.0.0.1"

const freePort = Effect.callback<number>((resume) => {
  const server = createServer()
  server.listen(0, host, () => {
    const address = server.address()
    server.close(() => resume(Effect.succeed(typeof address === "object" && address !== null ? address.port : 0)))
  })
})

const LogLine = Schema.fromJsonString(
  Schema.Struct({
    level: Schema.String,
    message: Schema.Unknown,
    annotations: Schema.Record(Schema.String, Schema.Unknown)
  })
)

// A worker's trouble is ours to show; the rest of what it says is for whoever asks for it.
const relay = (line: string) =>
  Option.match(Schema.decodeOption(LogLine)(line), {
    onNone: () => Effect.logWarning(line),
    onSome: ({ annotations, level, message }) =>
      (level === "WARN" || level === "ERROR" ? Effect.logWarning(message) : Effect.logDebug(message)).pipe(
        Effect.annotateLogs(annotations)
      )
  })

const make = Effect.fnUntraced(function* (options: { readonly tls: boolean }) {
  const spawner = yield* ChildProcessSpawner
  const files = yield* FileSystem.FileSystem
  const certificates = yield* DevCertificates

  const tlsEnvironment = Effect.gen(function* () {
    if (!options.tls) return { USE_SSL: "false" }
    const folder = yield* files.makeTempDirectoryScoped({ prefix: "null-pyworker-" })
    const issued = yield* certificates.issue
    const paths = { INSTANCE_CERT: `${folder}/instance.crt`, INSTANCE_KEY: `${folder}/instance.key` }
    yield* files.writeFileString(paths.INSTANCE_CERT, issued.certificate)
    yield* files.writeFileString(paths.INSTANCE_KEY, issued.key, { mode: 0o600 })
    return { USE_SSL: "true", ...paths }
  })

  return Fleet.of({
    start: Effect.fnUntraced(function* (assignment) {
      const port = yield* freePort
      const [program = "", command = ""] = process.argv
      const handle = yield* spawner.spawn(
        ChildProcess.make(program, [command, "worker"], {
          env: {
            ...(yield* tlsEnvironment),
            CONTAINER_ID: String(assignment.id),
            MASTER_TOKEN: assignment.masterToken,
            REPORT_ADDR: assignment.reportAddress,
            PUBLIC_IPADDR: host,
            WORKER_PORT: String(port),
            [`VAST_TCP_PORT_${port}`]: String(port),
            WORKER_HTTP_PORT: String(yield* freePort),
            NULL_CONTROL_PORT: String(yield* freePort),
            // Every worker is an instance of its own, on a disk that nobody had before.
            JOURNAL_DIR: "",
            WORKSPACE_DIR: "",
            LOG_FORMAT: "json",
            LOG_LEVEL: "debug"
          },
          extendEnv: true,
          stdin: "ignore",
          forceKillAfter: killAfter,
          // A Ctrl-C on the terminal is the control plane's to pass on, when it has closed what depends on the worker.
          detached: true
        })
      )
      yield* Effect.logInfo("worker process", { worker: assignment.id, pid: handle.pid })
      yield* handle.all.pipe(
        Stream.decodeText(),
        Stream.splitLines,
        Stream.runForEach(relay),
        Effect.annotateLogs({ worker: assignment.id }),
        Effect.ignore,
        Effect.forkScoped
      )
      return Effect.orElseSucceed(handle.exitCode, () => 1)
    })
  })
})

/**
 * Runs this very command as the worker, with TLS if asked, and stops it as an instance would: SIGTERM, and SIGKILL 10 s later.
 */
export const layer = (options: {
  readonly tls: boolean
}): Layer.Layer<Fleet, never, ChildProcessSpawner | FileSystem.FileSystem | DevCertificates> => Layer.effect(Fleet, make(options))
