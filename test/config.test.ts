import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import { apiKey, logConfig, reportIdentity, workerConfig } from "../src/config.ts"

const instance = { CONTAINER_ID: "42", PUBLIC_IPADDR: "1.2.3.4", VAST_TCP_PORT_3000: "30123" }

const load = (environment: Record<string, string>, drop: ReadonlyArray<string> = []) =>
  workerConfig.pipe(Effect.provide(environmentOf({ ...instance, ...environment }, drop)))

const environmentOf = (environment: Record<string, string>, drop: ReadonlyArray<string> = []) =>
  ConfigProvider.layer(
    ConfigProvider.fromEnv({ env: Object.fromEntries(Object.entries(environment).filter(([name]) => !drop.includes(name))) })
  )

describe("workerConfig", () => {
  it.effect("has the wire's defaults", () =>
    Effect.gen(function* () {
      const { masterToken, ...config } = yield* load({})
      assert.strictEqual(Redacted.value(masterToken), "")
      assert.deepStrictEqual(config, {
        id: 42,
        reportAddresses: ["https://run.vast.ai"],
        url: "http://1.2.3.4:30123",
        port: 3000,
        httpPort: 3001,
        controlPort: 18999,
        tls: Option.none(),
        signaturePolicy: "require",
        healthUrl: Option.none(),
        maxSessions: 1,
        maxBodyBytes: 1_048_576,
        onCloseAllowPrivate: false,
        journalDirectory: Option.none()
      })
    })
  )

  it.effect("reads what is set, and takes an empty variable for an unset one", () =>
    Effect.gen(function* () {
      const config = yield* load({
        USE_SSL: "true",
        REPORT_ADDR: "https://a/, http://b",
        WORKER_PORT: "4000",
        VAST_TCP_PORT_4000: "40000",
        BACKEND_HEALTH_URL: "http://127.0.0.1:8000/health?deep=1",
        MAX_SESSIONS: "3",
        VAST_SIGNATURE: "warn",
        NULL_CONTROL_PORT: ""
      })
      assert.deepInclude(config, {
        url: "https://1.2.3.4:40000",
        port: 4000,
        httpPort: 4001,
        controlPort: 18999,
        reportAddresses: ["https://a", "http://b"],
        maxSessions: 3,
        signaturePolicy: "warn"
      })
      assert.deepStrictEqual(config.healthUrl, Option.some("http://127.0.0.1:8000/health?deep=1"))
      assert.deepStrictEqual(config.tls, Option.some({ certificate: "/etc/instance.crt", key: "/etc/instance.key" }))
      assert.strictEqual((yield* load({ UNSECURED: "true", VAST_SIGNATURE: "warn" })).signaturePolicy, "off")
    })
  )

  it.effect.each<[string, string]>([
    ["CONTAINER_ID", "abc"],
    ["CONTAINER_ID", "-1"],
    ["WORKER_PORT", "99999"],
    ["WORKER_PORT", "0"],
    ["WORKER_PORT", "3000.5"],
    ["WORKER_HTTP_PORT", "http"],
    ["NULL_CONTROL_PORT", "70000"],
    ["PUBLIC_IPADDR", "no host"],
    ["PUBLIC_IPADDR", "1.2.3.4/path"],
    ["VAST_TCP_PORT_3000", "x"],
    ["REPORT_ADDR", "run.vast.ai"],
    ["REPORT_ADDR", "https://a,,https://b"],
    ["USE_SSL", "yes"],
    ["UNSECURED", "maybe"],
    ["VAST_SIGNATURE", "never"],
    ["BACKEND_HEALTH_URL", "/health"],
    ["BACKEND_HEALTH_URL", "ftp://x"],
    ["MAX_SESSIONS", "0"],
    ["MAX_SESSIONS", "1.5"]
  ])("refuses %s=%s in one line that names both", ([name, value]) =>
    Effect.gen(function* () {
      const { message, variable } = yield* Effect.flip(load({ [name]: value }))
      assert.strictEqual(variable, name)
      assert.isTrue(message.startsWith(`${name}="${value}": it must be `), message)
      assert.notInclude(message, "\n")
    })
  )

  it.effect.each(["CONTAINER_ID", "PUBLIC_IPADDR", "VAST_TCP_PORT_3000"])("names %s when it is missing", (name) =>
    Effect.gen(function* () {
      assert.match((yield* Effect.flip(load({}, [name]))).message, new RegExp(`^${name} is not set: it must be `))
    })
  )

  it.effect("refuses the same port twice, by the defaults too", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* Effect.flip(load({ WORKER_HTTP_PORT: "3000" }))).variable, "WORKER_HTTP_PORT")
      assert.match((yield* Effect.flip(load({ NULL_CONTROL_PORT: "3001" }))).message, /another port than WORKER_HTTP_PORT's/)
    })
  )
})

describe("the rest of the environment", () => {
  it.effect("still says who reports when another setting is bad", () =>
    Effect.gen(function* () {
      const identity = yield* reportIdentity
      assert.deepInclude(identity, { id: 42, url: "" })
    }).pipe(Effect.provide(environmentOf({ ...instance, WORKER_PORT: "x", MASTER_TOKEN: "secret" })))
  )

  it.effect("reads the log's form", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* Effect.provide(logConfig, environmentOf({})), { format: "text", level: "Info" })
      const json = environmentOf({ LOG_FORMAT: "json", LOG_LEVEL: "debug" })
      assert.deepStrictEqual(yield* Effect.provide(logConfig, json), { format: "json", level: "Debug" })
      assert.strictEqual(
        (yield* Effect.flip(Effect.provide(logConfig, environmentOf({ LOG_LEVEL: "loud" })))).variable,
        "LOG_LEVEL"
      )
    })
  )

  it.effect("does not show a secret", () =>
    Effect.gen(function* () {
      const key = yield* Effect.provide(apiKey, environmentOf({ VAST_API_KEY: "secret" }))
      assert.notInclude(`${key} ${JSON.stringify(key)}`, "secret")
      assert.strictEqual((yield* Effect.flip(Effect.provide(apiKey, environmentOf({})))).variable, "VAST_API_KEY")
    })
  )
})
