/**
 * `auth_data`: the autoscaler's signed word that a request may go to a worker (wire section 3).
 *
 * A client gets it from `/route/`, sends it back whole to the worker, and it stays the key to the session that it created.
 */

import { timingSafeEqual } from "node:crypto"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { isJsonObject } from "./Json.ts"

/** More than any worker serves, and little enough that sums of it stay numbers that JSON can carry. */
const mostWorkload = 1e9

/** Whether a number can be a load, in workload units. */
export const isWorkload = (load: number): boolean => load >= 0 && load <= mostWorkload

const accepted = { expected: "a number from 0 to 1e9" }

/** A load in workload units. */
export const Workload = Schema.Finite.check(Schema.makeFilter(isWorkload, accepted))

const WorkloadText = Schema.String.check(
  Schema.makeFilter((text: string) => /^\d+(\.\d+)?$/.test(text) && isWorkload(Number(text)), accepted)
)

const Known = Schema.Struct({
  url: Schema.String,
  signature: Schema.optionalKey(Schema.String),
  endpoint: Schema.optionalKey(Schema.String),
  cost: Schema.optionalKey(Schema.Union([Workload, WorkloadText])),
  reqnum: Schema.optionalKey(Schema.Int),
  request_idx: Schema.optionalKey(Schema.Int)
})
const checkKnown = Schema.decodeUnknownResult(Known)

/**
 * The object as it travels. Only `url` is always there: a debug client (`VAST_DEBUG_WORKER_URL`) sends little else, and a
 * missing `signature` is the signature check's to refuse. It is the very object that came, with the fields that we do not know
 * and in its order, because the SDK compares and returns it whole.
 */
export type AuthData = typeof Known.Type & Schema.JsonObject
export const AuthData = Schema.declare((value): value is AuthData => isJsonObject(value), { expected: "an object" }).check(
  Schema.makeFilter((auth, _ast, options) =>
    Result.match(checkKnown(auth, options), { onFailure: ({ issue }) => issue, onSuccess: () => undefined })
  )
)

/** The workload of a request whose `auth_data` does not say: the SDK's own default. */
export const defaultCost = 100

/** The workload that a request brings, in workload units. */
export const workload = (auth: AuthData): number => Number(auth.cost ?? defaultCost)

/**
 * The exact bytes that the autoscaler signs: Python's `json.dumps({"url": url}, indent=4, sort_keys=True)`, which escapes
 * every character outside ASCII.
 */
export const signedMessage = (url: string): string => {
  const escaped = JSON.stringify(url).replace(
    /[\u007f-\uffff]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`
  )
  return `{\n    "url": ${escaped}\n}`
}

const inOrder = (value: Schema.Json): Schema.Json => {
  if (typeof value !== "object" || value === null) return value
  if (Array.isArray(value)) return value.map(inOrder)
  // Its fields as a list, so that no key means anything special, inside an object, so that it equals no list.
  const fields = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))
  return { fields: fields.map(([key, item]) => [key, inOrder(item)]) }
}

const sameText = (a: string, b: string) => {
  const [one, other] = [Buffer.from(a), Buffer.from(b)]
  return one.length === other.length && timingSafeEqual(one, other)
}

/**
 * Whether two objects are equal by value, whatever the order of their keys. One of them is a secret: the time that it takes
 * tells no more of it than its length. Clients return an object as they got it, so texts alone decide nearly always.
 */
export const isSame = (a: Schema.JsonObject, b: Schema.JsonObject): boolean =>
  sameText(JSON.stringify(a), JSON.stringify(b)) || sameText(JSON.stringify(inOrder(a)), JSON.stringify(inOrder(b)))
