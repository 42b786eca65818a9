/**
 * Every environment variable of the worker and of the client, once: its name, what it accepts, its default.
 *
 * An empty variable counts as unset, because instance templates pass empty ones on. Whatever is missing, malformed or
 * impossible fails with one `ConfigRefused` that a person can act on.
 */
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as LogLevel from "effect/LogLevel"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Runtime from "effect/Runtime"
import * as Schema from "effect/Schema"
import { HttpUrl } from "./protocol/SessionApi.ts"

/** A variable that cannot be used. The process that meets it exits 78 (`EX_CONFIG`), which tells a supervisor not to restart it. */
export class ConfigRefused extends Schema.TaggedError<ConfigRefused>()("ConfigRefused", {
  variable: Schema.String,
  message: Schema.String
}) {
  override readonly [Runtime.errorExitCode] = 78
}

/** Who the worker is to the autoscaler. Read apart from the rest, so that a bad setting elsewhere can still be reported. */
export interface ReportIdentity {
  /** `CONTAINER_ID`: the instance's number. */
  readonly id: number
  /** `MASTER_TOKEN`: proves the reports to the autoscaler, and `/pyworker/update` to us. Empty authorises nobody. */
  readonly masterToken: Redacted.Redacted
  /** `REPORT_ADDR`: where reports go, tried in this order. */
  readonly reportAddresses: readonly [string, ...Array<string>]
  /** The URL that the autoscaler hands to clients, or empty while it is not known. */
  readonly url: string
}

/** How client requests prove that the autoscaler sent them (wire section 3). */
export type SignaturePolicy = "require" | "warn" | "off"

/** The settings of one worker process. */
export class WorkerConfig extends Context.Service<
  WorkerConfig,
  ReportIdentity & {
    /** `WORKER_PORT`: where clients come in, on all interfaces. */
    readonly port: number
    /** `WORKER_HTTP_PORT`: loopback, plain HTTP, `/session/end` only. */
    readonly httpPort: number
    /** `NULL_CONTROL_PORT`: loopback, the consumer's `/release`. */
    readonly controlPort: number
    /** Certificate and key files, with `USE_SSL=true`. */
    readonly tls: Option.Option<{ readonly certificate: string; readonly key: string }>
    readonly signaturePolicy: SignaturePolicy
    /** `BACKEND_HEALTH_URL`, query string and all; none means that nothing but the worker itself is probed. */
    readonly healthUrl: Option.Option<string>
    /** `MAX_SESSIONS`: sessions that may be open at once. */
    readonly maxSessions: number
    /** `MAX_BODY_BYTES`: a longer request body is refused. */
    readonly maxBodyBytes: number
    /** `ON_CLOSE_ALLOW_PRIVATE`: callbacks may go to addresses that only the instance's own network answers at. */
    readonly onCloseAllowPrivate: boolean
    /** `JOURNAL_DIR`, or a folder of `WORKSPACE_DIR`: where sessions outlive the process. Without either, they do not. */
    readonly journalDirectory: Option.Option<string>
  }
>()("null-pyworker/WorkerConfig") {}

/** Reads one variable. Without a fallback it must be set. */
const read = Effect.fnUntraced(function* <A>(
  name: string,
  accepted: string,
  codec: Schema.ConstraintCodec<A, string>,
  fallback?: A
): Effect.fn.Return<A, ConfigRefused> {
  const text = yield* Effect.orDie(Config.option(Config.String(name)))
  if (Option.isSome(text)) {
    return yield* Schema.decodeEffect(codec)(text.value).pipe(
      Effect.mapError(() => refused(name, `${name}=${JSON.stringify(withoutUserInfo(text.value))}`, accepted))
    )
  }
  return fallback ?? (yield* refused(name, `${name} is not set`, accepted))
})

// A URL may have a password in it, even one that is no URL.
const withoutUserInfo = (text: string) => text.replace(/\/\/[^/@]*@/g, "//***@")

const refused = (variable: string, fact: string, accepted: string) =>
  new ConfigRefused({ variable, message: `${fact}: it must be ${accepted}` })

const readSecret = (name: string) => Config.Redacted(name).pipe(Config.option, Effect.orDie)

const port = "a port from 1 to 65535"
const Port = Schema.FiniteFromString.check(Schema.isInt(), Schema.isBetween({ minimum: 1, maximum: 65535 }))

const flag = "true or false"
const Flag = Schema.Literals(["true", "false"])

const Id = Schema.FiniteFromString.check(Schema.isInt(), Schema.isGreaterThanOrEqualTo(0))
const Count = Schema.FiniteFromString.check(Schema.isInt(), Schema.isGreaterThan(0))
const Host = Schema.String.check(Schema.makeFilter((text: string) => URL.canParse(`http://${text}:1/`) && !/[/?#@]/.test(text)))
const Addresses = Schema.String.check(
  Schema.makeFilter((text: string) => text.split(",").every((address) => Schema.is(HttpUrl)(address.trim())))
)

const readFlag = (name: string) => Effect.map(read(name, flag, Flag, "false"), (value) => value === "true")
const readUseSsl = readFlag("USE_SSL")
const readPort = read("WORKER_PORT", port, Port, 3000)

const readUrl = Effect.gen(function* () {
  const scheme = (yield* readUseSsl) ? "https" : "http"
  const host = yield* read("PUBLIC_IPADDR", "the address that clients reach this machine by", Host)
  const workerPort = yield* readPort
  const publicPort = yield* read(
    `VAST_TCP_PORT_${workerPort}`,
    `the public port that leads to WORKER_PORT ${workerPort}: ${port}`,
    Port
  )
  return `${scheme}://${host}:${publicPort}`
})

const readIdentity = Effect.gen(function* () {
  const addresses = yield* read("REPORT_ADDR", "http or https URLs, split at commas", Addresses, "https://run.vast.ai")
  return {
    id: yield* read("CONTAINER_ID", "the instance's number", Id),
    masterToken: Option.getOrElse(yield* readSecret("MASTER_TOKEN"), () => Redacted.make("")),
    reportAddresses: addresses.split(",").map((address) => address.trim().replace(/\/+$/, "")) as [string, ...Array<string>]
  }
})

/** Who to report a failed launch as: what can be read of the identity, with an empty `url` where that cannot. */
export const reportIdentity: Effect.Effect<ReportIdentity, ConfigRefused> = Effect.gen(function* () {
  return { ...(yield* readIdentity), url: yield* Effect.orElseSucceed(readUrl, () => "") }
})

const readJournalDirectory = Effect.gen(function* () {
  const directory = yield* read("JOURNAL_DIR", "a directory's path", Schema.String, "")
  if (directory !== "") return Option.some(directory)
  const workspace = yield* read("WORKSPACE_DIR", "a directory's path", Schema.String, "")
  return workspace === "" ? Option.none() : Option.some(`${workspace}/null-pyworker`)
})

const signaturePolicies = ["require", "warn", "off"] as const

/** The worker's settings from the environment. */
export const workerConfig: Effect.Effect<WorkerConfig["Service"], ConfigRefused> = Effect.gen(function* () {
  const identity = yield* readIdentity
  const workerPort = yield* readPort
  const ports = {
    WORKER_PORT: workerPort,
    WORKER_HTTP_PORT: yield* read("WORKER_HTTP_PORT", port, Port, Math.min(workerPort + 1, 65535)),
    NULL_CONTROL_PORT: yield* read("NULL_CONTROL_PORT", port, Port, 18999)
  }
  yield* refuseSharedPorts(ports)
  const tls = (yield* readUseSsl)
    ? Option.some({
        certificate: yield* read("INSTANCE_CERT", "a file's path", Schema.String, "/etc/instance.crt"),
        key: yield* read("INSTANCE_KEY", "a file's path", Schema.String, "/etc/instance.key")
      })
    : Option.none()
  const unsecured = yield* readFlag("UNSECURED")
  const policy = yield* read("VAST_SIGNATURE", signaturePolicies.join(", "), Schema.Literals(signaturePolicies), "require")
  const healthUrl = yield* read("BACKEND_HEALTH_URL", "an absolute http or https URL", HttpUrl, "")
  return {
    ...identity,
    url: yield* readUrl,
    port: ports.WORKER_PORT,
    httpPort: ports.WORKER_HTTP_PORT,
    controlPort: ports.NULL_CONTROL_PORT,
    tls,
    signaturePolicy: unsecured ? "off" : policy,
    healthUrl: healthUrl === "" ? Option.none() : Option.some(healthUrl),
    maxSessions: yield* read("MAX_SESSIONS", "a number of sessions from 1", Count, 1),
    maxBodyBytes: yield* read("MAX_BODY_BYTES", "a number of bytes from 1", Count, 2 ** 20),
    onCloseAllowPrivate: yield* readFlag("ON_CLOSE_ALLOW_PRIVATE"),
    journalDirectory: yield* readJournalDirectory
  }
})

const refuseSharedPorts = (ports: Readonly<Record<string, number>>): Effect.Effect<void, ConfigRefused> => {
  const taken = new Map<number, string>()
  for (const [name, value] of Object.entries(ports)) {
    const other = taken.get(value)
    if (other !== undefined) return Effect.fail(refused(name, `${name}=${value}`, `another port than ${other}'s`))
    taken.set(value, name)
  }
  return Effect.void
}

/** Provides the settings from the environment. */
export const layerFromEnv: Layer.Layer<WorkerConfig, ConfigRefused> = Layer.effect(WorkerConfig, workerConfig)

const levels = { trace: "Trace", debug: "Debug", info: "Info", warn: "Warn", error: "Error", none: "None" } as const
const levelNames = Object.keys(levels) as Array<keyof typeof levels>

/** `LOG_FORMAT` and `LOG_LEVEL`, the same for every command. */
export const logConfig: Effect.Effect<{ readonly format: "text" | "json"; readonly level: LogLevel.LogLevel }, ConfigRefused> =
  Effect.gen(function* () {
    const format = yield* read("LOG_FORMAT", "text or json", Schema.Literals(["text", "json"]), "text")
    const level = yield* read("LOG_LEVEL", levelNames.join(", "), Schema.Literals(levelNames), "info")
    return { format, level: levels[level] }
  })

/** `VAST_API_KEY`: the client's key to the web API. */
export const apiKey: Effect.Effect<Redacted.Redacted, ConfigRefused> = Effect.flatMap(
  readSecret("VAST_API_KEY"),
  Option.match({
    onNone: () => Effect.fail(refused("VAST_API_KEY", "VAST_API_KEY is not set", "an API key of your Vast account")),
    onSome: Effect.succeed
  })
)
