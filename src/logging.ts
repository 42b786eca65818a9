/**
 * How the log is written: one line an event, to read or as JSON.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Formatter from "effect/Formatter"
import { CurrentRedactedNames } from "effect/http/UrlParams"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import { type ConfigRefused, logConfig } from "./config.ts"

const plain = /^[^\s"=]*$/

const textOf = (value: unknown) => (typeof value === "string" ? value : Formatter.format(value, { space: 0 }))

const quoted = (value: unknown) => {
  if (typeof value === "number") return String(value)
  const text = textOf(value)
  return plain.test(text) ? text : JSON.stringify(text)
}

const isFields = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype

/** An event's message, and its fields: what it was annotated with, and the plain objects that were logged beside the message. */
const parts = ({ fiber, message }: Logger.Options<unknown>) => {
  const all = Array.isArray(message) ? message : [message]
  const fields: Record<string, unknown> = Object.assign(
    { ...fiber.getRef(References.CurrentLogAnnotations) },
    ...all.filter(isFields)
  )
  const words = all.filter((part) => !isFields(part))
  return { message: words.length === 1 ? textOf(words[0]) : words.map(textOf).join(" "), fields }
}

// In the form of `Logger.formatLogFmt`. That one tries every name and value against patterns, and writing a session's two lines
// by it took a tenth of all the time of a busy worker.
const text = Logger.make<unknown, string>((options) => {
  const { message, fields } = parts(options)
  let line = `timestamp=${options.date.toISOString()} level=${options.logLevel.toUpperCase()} message=${quoted(message)}`
  for (const name in fields) line += ` ${name}=${quoted(fields[name])}`
  return options.cause.reasons.length === 0 ? line : `${line} cause=${quoted(Cause.pretty(options.cause))}`
})

const json = Logger.make<unknown, string>((options) => {
  const { message, fields } = parts(options)
  const { date, logLevel, cause } = options
  return Formatter.formatJson({
    timestamp: date.toISOString(),
    level: logLevel.toUpperCase(),
    message,
    annotations: fields,
    ...(cause.reasons.length > 0 && { cause: Cause.pretty(cause) })
  })
})

/** The form of a line that `LOG_FORMAT` asks for. */
export const format: Effect.Effect<Logger.Logger<unknown, string>, ConfigRefused> = Effect.map(logConfig, ({ format }) =>
  format === "json" ? json : text
)

// Writing costs a busy worker more than all else about a line, so what is logged in one turn of the event loop is written at its
// end in one go, or when the process leaves before.
const writeEachTurn = Effect.gen(function* () {
  let lines = ""
  const write = () => {
    if (lines !== "") process.stdout.write(lines)
    lines = ""
  }
  yield* Effect.acquireRelease(
    Effect.sync(() => process.on("exit", write)),
    () => Effect.sync(() => process.off("exit", write)).pipe(Effect.andThen(Effect.sync(write)))
  )
  return (line: string) => {
    if (lines === "") setImmediate(write)
    lines += `${line}\n`
  }
})

/**
 * Logs to standard output in the form of `LOG_FORMAT`, from the level of `LOG_LEVEL` up. Errors of requests show no query of
 * their URL, whose parameters are often secrets.
 */
export const layer: Layer.Layer<never, ConfigRefused> = Layer.unwrap(
  Effect.gen(function* () {
    const { level } = yield* logConfig
    const lineFormat = yield* format
    return Layer.mergeAll(
      Logger.layer([Effect.map(writeEachTurn, (write) => Logger.map(lineFormat, write))]),
      Layer.succeed(References.MinimumLogLevel, level),
      Layer.succeed(CurrentRedactedNames, [/./])
    )
  })
)
