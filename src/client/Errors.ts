/**
 * How a client's request can fail, other than by what it asked for.
 */
import * as Schema from "effect/Schema"

/** The key, the signature or the session's `auth_data` was not accepted. Trying again does not help. */
export class Unauthorised extends Schema.TaggedError<Unauthorised>()("Unauthorised", { by: Schema.String }) {
  override get message() {
    return `${this.by} does not accept the key`
  }
}

/** No answer, or not one that this client understands. */
export class RequestFailed extends Schema.TaggedError<RequestFailed>()("RequestFailed", {
  what: Schema.String,
  reason: Schema.String
}) {
  override get message() {
    return `${this.what}: ${this.reason}`
  }
}

/** No worker took the request within the time that the caller gave, in seconds. */
export class NoWorkerInTime extends Schema.TaggedError<NoWorkerInTime>()("NoWorkerInTime", { seconds: Schema.Finite }) {
  override get message() {
    return `no worker within ${this.seconds} s`
  }
}

/** The worker that holds the session cannot be reached any more, and the session is lost with it. */
export class WorkerGone extends Schema.TaggedError<WorkerGone>()("WorkerGone", {
  url: Schema.String,
  reason: Schema.String
}) {
  override get message() {
    return `the worker at ${this.url} is gone: ${this.reason}`
  }
}

/** The session has ended: closed by the consumer, by its lifetime, or by another client that holds its key. */
export class SessionEnded extends Schema.TaggedError<SessionEnded>()("SessionEnded", { sessionId: Schema.String }) {
  override get message() {
    return `session ${this.sessionId} has ended`
  }
}
