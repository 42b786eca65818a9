/**
 * What a worker tells the autoscaler (wire section 8). Field names, misspelling included, are the platform's.
 */
import * as Schema from "effect/Schema"

/** The version of the framework's protocol that we speak. */
export const protocolVersion = "1.1.0"

/** Body of `POST {addr}/worker_status/`. Loads and perfs are workload units, `loadtime` seconds, disk figures GiB. */
export const WorkerStatus = Schema.Struct({
  id: Schema.Int,
  mtoken: Schema.String,
  version: Schema.String,
  loadtime: Schema.Finite,
  new_load: Schema.Finite,
  cur_load: Schema.Finite,
  rej_load: Schema.Finite,
  cur_perf: Schema.Finite,
  max_perf: Schema.Finite,
  error_msg: Schema.String,
  num_requests_working: Schema.Int,
  num_requests_recieved: Schema.Int,
  additional_disk_usage: Schema.Finite,
  disk_usage: Schema.Finite,
  working_request_idxs: Schema.Array(Schema.Int),
  cur_capacity: Schema.Finite,
  max_capacity: Schema.Finite,
  url: Schema.String
})
export type WorkerStatus = typeof WorkerStatus.Type

/** How a request ended. A session that closes, for whatever reason, is a `Success`. */
export const RequestStatus = Schema.Literals(["Success", "Rejected", "Cancelled", "Error"])
export type RequestStatus = typeof RequestStatus.Type

/** One request that the autoscaler may forget. Times are epoch seconds, 0 where the request never got that far. */
export const DeletedRequest = Schema.Struct({
  request_idx: Schema.Int,
  success: Schema.Boolean,
  status: RequestStatus,
  entered_queue_at: Schema.Finite,
  work_started_at: Schema.Finite,
  work_completed_at: Schema.Finite
})
export type DeletedRequest = typeof DeletedRequest.Type

/** Body of `POST {addr}/delete_requests/`. */
export const DeleteRequests = Schema.Struct({
  worker_id: Schema.Int,
  mtoken: Schema.String,
  requests: Schema.Array(DeletedRequest)
})
