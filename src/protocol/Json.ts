/**
 * JSON within what is on the wire.
 *
 * What `JSON.parse` gave is JSON. `Schema.Json` would look at every value inside it again, which costs a worker more than all
 * else that it checks of a request; these look no further than they have to.
 */
import * as Schema from "effect/Schema"

/** Any value out of a JSON text. */
export const Json = Schema.declare((_value): _value is Schema.Json => true)

/** Whether a value out of a JSON text is an object. */
export const isJsonObject = (value: unknown): value is Schema.JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value)

/** An object out of a JSON text. */
export const JsonObject = Schema.declare(isJsonObject, { expected: "an object" })
