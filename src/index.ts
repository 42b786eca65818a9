/**
 * Build your own Vast.ai Serverless worker, or reserve workers from your own code.
 *
 * A worker is layers: `Worker.layer({ handlers })` on services of which each can be exchanged. `Launch.runMain` makes it a
 * process. `Serverless` is the caller's side.
 *
 * @module null-pyworker
 */

/** An endpoint as its callers use it. */
export * as Endpoint from "./client/Endpoint.ts"
/** How a client's request can fail. */
export * as ClientErrors from "./client/Errors.ts"
/** The caller's way to Vast Serverless. */
export * as Serverless from "./client/Serverless.ts"
/** A reserved worker as its client holds it. */
export * as ClientSession from "./client/Session.ts"
/** Every setting, from the environment. */
export * as WorkerConfig from "./config.ts"
/** Tells the autoscaler about the worker's load. */
export * as MetricsReporter from "./metrics/MetricsReporter.ts"
/** Tells the user that a session has closed. */
export * as OnClose from "./session/OnClose.ts"
/** The reservation of a worker. */
export * as Session from "./session/Session.ts"
/** What outlives the process. */
export * as SessionJournal from "./session/SessionJournal.ts"
/** The room that a worker has for sessions. */
export * as SessionSlot from "./session/SessionSlot.ts"
/** What the consumer on the instance speaks to. */
export * as ControlServer from "./worker/ControlServer.ts"
/** A route of the worker's own. */
export * as Handler from "./worker/Handler.ts"
/** Whether the consumer can take work. */
export * as HealthProbe from "./worker/HealthProbe.ts"
/** A worker as a process. */
export * as Launch from "./worker/Launch.ts"
/** Where a worker is reached. */
export * as Listener from "./worker/Listener.ts"
/** How much a worker can serve. */
export * as Performance from "./worker/Performance.ts"
/** When the backend has started. */
export * as Readiness from "./worker/Readiness.ts"
/** Whether a request comes through the autoscaler. */
export * as RequestAuth from "./worker/RequestAuth.ts"
/** A worker put together. */
export * as Worker from "./worker/Worker.ts"
