/**
 * A request's body: read whole, as JSON, and as its schema says, or refused in a way that names what is wrong.
 */
import * as ByteSize from "effect/ByteSize"
import * as Effect from "effect/Effect"
import { MaxBodySize } from "effect/http/HttpIncomingMessage"
import { HttpServerError, RequestParseError } from "effect/http/HttpServerError"
import * as HttpServerRequest from "effect/http/HttpServerRequest"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaIssue from "effect/SchemaIssue"

/** The body is no JSON that the route takes; `fields` says what is wrong where. Becomes 422. */
export class BodyRefused extends Schema.TaggedError<BodyRefused>()("BodyRefused", {
  message: Schema.String,
  fields: Schema.Record(Schema.String, Schema.Json)
}) {}

/** Deeper JSON than any client of ours sends, shallow enough for every recursion over it. */
const maxDepth = 64

const withinDepth = (value: unknown, depth: number): boolean =>
  typeof value !== "object" || value === null || (depth > 0 && Object.values(value).every((item) => withinDepth(item, depth - 1)))

/** Takes a text as the schema says, if it is JSON. */
export const decode = <S extends Schema.ConstraintDecoder<unknown>>(schema: S) => {
  const take = Schema.decodeUnknownResult(schema)
  // Looking for all that is wrong takes several times as long, so that is done only where something is.
  const explain = Schema.decodeUnknownResult(schema, { errors: "all" })
  return (text: string): Result.Result<S["Type"], BodyRefused> => {
    const json = jsonOf(text)
    if (json === undefined) return Result.fail(new BodyRefused({ message: "invalid JSON", fields: {} }))
    if (!withinDepth(json, maxDepth)) return Result.fail(new BodyRefused({ message: "JSON nested too deeply", fields: {} }))
    const taken = take(json)
    return Result.isSuccess(taken)
      ? Result.succeed(taken.success)
      : Result.mapError(explain(json), (error) => refuse(error.issue))
  }
}

/** The request's body, whole. */
export const text = HttpServerRequest.HttpServerRequest.use((request) => Effect.andThen(refuseAnnounced(request), request.text))

/** Reads the request's body as the schema says. The content type does not matter, as it never has on this wire. */
export const read = <S extends Schema.ConstraintDecoder<unknown>>(schema: S) => {
  const decodeText = decode(schema)
  return Effect.flatMap(text, (text) => Effect.fromResult(decodeText(text)))
}

const jsonOf = (text: string): unknown => {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

// Reading stops at the limit; what says that it will go beyond need not even be begun.
const refuseAnnounced = (request: HttpServerRequest.HttpServerRequest) =>
  MaxBodySize.use((limit) =>
    limit === undefined || Number(request.headers["content-length"] ?? 0) <= ByteSize.toNumberUnsafe(limit)
      ? Effect.void
      : Effect.fail(new HttpServerError({ reason: new RequestParseError({ request, reason: "BodyTooLarge" }) }))
  )

/** Refuses a body for what is in one of its fields. */
export const refuseField = ([field, ...inner]: readonly [string, ...Array<string>], message: string): BodyRefused => {
  const fields: Record<string, Schema.Json> = {}
  place(fields, field, inner, message)
  return new BodyRefused({ message: `${[field, ...inner].join(".")}: ${message}`, fields })
}

const format = SchemaIssue.makeFormatterStandardSchemaV1({
  leafHook: (issue) => (issue._tag === "MissingKey" ? "missing" : SchemaIssue.defaultLeafHook(issue))
})

// The framework's shape: what is wrong with a field stands under the field's name, and inside it for a field's field.
const refuse = (issue: SchemaIssue.Issue): BodyRefused => {
  const fields: Record<string, Schema.Json> = {}
  const messages: Array<string> = []
  for (const { message, path = [] } of format(issue).issues) {
    const [field, ...inner] = path.map((key) => String(typeof key === "object" ? key.key : key))
    if (field === undefined) messages.push(`body: ${message}`)
    else if (message === "missing") {
      messages.push(`missing ${[field, ...inner].join(".")}`)
      place(fields, field, inner, inner.length === 0 ? "field missing" : "missing parameter")
    } else {
      messages.push(`${[field, ...inner].join(".")}: ${message}`)
      place(fields, field, inner, message)
    }
  }
  return new BodyRefused({ message: messages.join("; "), fields })
}

const place = (fields: Record<string, Schema.Json>, field: string, inner: ReadonlyArray<string>, message: string) => {
  const known = fields[field]
  fields[field] = inner.length === 0 ? message : { ...(typeof known === "object" ? known : {}), [inner.join(".")]: message }
}
