/**
 * What a client asks of the web API and of the autoscaler (wire section 9), and what an instance asks of the console (10).
 */
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import { AuthData, Workload } from "./AuthData.ts"

/** Body of `POST {autoscaler}/route/`. A `request_idx` of 0 asks for a new place in the queue. */
export const RouteRequest = Schema.Struct({
  endpoint: Schema.String,
  api_key: Schema.String,
  cost: Workload,
  request_idx: Schema.Int.pipe(Schema.withDecodingDefaultKey(Effect.succeed(0))),
  replay_timeout: Schema.Finite.pipe(Schema.withDecodingDefaultKey(Effect.succeed(60)))
})

/** A worker is ready and this is the key to it. */
const Routed = AuthData

/** No worker is ready: poll again with this `request_idx`. */
export const Queued = Schema.Struct({ request_idx: Schema.optionalKey(Schema.Int), status: Schema.optionalKey(Schema.String) })

export const RouteAnswer = Schema.Union([Routed, Queued])

/** Scaling parameters of an endpoint. Loads are workload units, times seconds. */
export const EndpointParameters = Schema.Struct({
  max_workers: Schema.Int,
  min_load: Schema.Finite,
  target_util: Schema.Finite,
  max_queue_time: Schema.Finite,
  target_queue_time: Schema.Finite,
  inactivity_timeout: Schema.Finite,
  cold_workers: Schema.Int
})
export type EndpointParameters = typeof EndpointParameters.Type

/** An endpoint as the web API lists it; its own `api_key` is the one that routes. */
export const EndpointJob = Schema.Struct({ id: Schema.Int, api_key: Schema.String, endpoint_name: Schema.String })
export type EndpointJob = typeof EndpointJob.Type

/** Answer of `GET {web}/api/v0/endptjobs/?client_id=me`. */
export const EndpointJobs = Schema.Struct({ results: Schema.Array(EndpointJob) })

/** Body of `POST {autoscaler}/get_endpoint_workers/`. */
export const WorkersRequest = Schema.Struct({ id: Schema.Int, api_key: Schema.String })

const Figure = Schema.Finite.pipe(Schema.withDecodingDefaultKey(Effect.succeed(0)))

/** One worker as the autoscaler sees it; figures that it leaves out are 0. Loads and perfs are workload units, times epoch seconds. */
export const WorkerInfo = Schema.Struct({
  id: Schema.Int,
  status: Schema.String.pipe(Schema.withDecodingDefaultKey(Effect.succeed("UNKNOWN"))),
  cur_load: Figure,
  new_load: Figure,
  cur_perf: Figure,
  perf: Figure,
  measured_perf: Figure,
  reqs_working: Figure,
  loaded_at: Figure,
  started_at: Figure
})
export type WorkerInfo = typeof WorkerInfo.Type
