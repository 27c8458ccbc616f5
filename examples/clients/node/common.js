'use strict';
// What the three clients share: channel options, errors and the retry policy. See docs/protocol.md.

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');
const protobuf = require('protobufjs'); // a dependency of proto-loader

const definition = protoLoader.loadSync('tidegate/v1/tidegate.proto', {
  includeDirs: [path.join(__dirname, '../../../protos')],
  longs: Number, // step numbers up to 2^53
  enums: String,
  defaults: true,
  oneofs: true,
});
const { TidegateService } = grpc.loadPackageDefinition(definition).tidegate.v1;
const details = protobuf.parse(`syntax = "proto3";
  message Any { string type_url = 1; bytes value = 2; }
  message Status { int32 code = 1; string message = 2; repeated Any details = 3; }
  message ErrorInfo { string reason = 1; string domain = 2; map<string, string> metadata = 3; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message RetryInfo { Duration retry_delay = 1; }`, { keepCase: true }).root;

const CALL_MS = 10_000; // the deadline of an open and of a unary call
const BACKOFF_FIRST_MS = 50;
const BACKOFF_MAX_MS = 5_000;
const GIVE_UP_MS = 60_000;
const ENVELOPE_BYTES = 64; // the largest size of a request without its values
// Codes of a status without ErrorInfo, which comes from the network, a proxy or gRPC, after which a client tries again.
const BREAKS = new Set(
  ['OK', 'UNAVAILABLE', 'INTERNAL', 'UNKNOWN', 'CANCELLED', 'DEADLINE_EXCEEDED', 'RESOURCE_EXHAUSTED']);

/** To continue would lose data, mix up data, or never succeed. A person must decide. */
class StreamLost extends Error {
  constructor({ reason, message }) {
    super(`${reason}: ${message}`);
    this.reason = reason;
  }
}

/** A timestep was dropped. The stream continues, and the next timestep takes its number. */
class Refused extends Error {
  constructor({ reason, message }) {
    super(`${reason}: ${message}`);
    this.reason = reason;
  }
}

function connect(address) {
  return new TidegateService(address, grpc.credentials.createInsecure(), {
    'grpc.keepalive_time_ms': 40_000,
    'grpc.keepalive_timeout_ms': 20_000,
    'grpc.initial_reconnect_backoff_ms': 100,
    'grpc.max_reconnect_backoff_ms': 1_000,
    'grpc.max_receive_message_length': 64 << 20,
  });
}

/** Why a call ended, and what to do about it. A status without ErrorInfo does not come from Tidegate. */
function endingOf({ code, details: message, metadata }) {
  let info = {};
  let retryMs = 0;
  for (const bytes of metadata?.get('grpc-status-details-bin') ?? []) {
    for (const { type_url: type, value } of details.lookupType('Status').decode(bytes).details) {
      if (type.endsWith('/google.rpc.ErrorInfo')) info = details.lookupType('ErrorInfo').decode(value);
      if (type.endsWith('/google.rpc.RetryInfo')) {
        retryMs = milliseconds(details.lookupType('RetryInfo').decode(value).retry_delay);
      }
    }
  }
  if (info.domain === 'tidegate.v1') return { reason: info.reason, action: info.metadata.action, message, retryMs };
  const retryable = BREAKS.has(grpc.status[code]) && !message.includes('larger than max');
  return { reason: grpc.status[code], action: retryable ? 'REOPEN' : 'STREAM_LOST', message, retryMs };
}

/** Why a timestep was refused, and what to do about it. An unknown action means that the stream is lost. */
function endingOfTimestep({ reason, action, message, retryAfter }) {
  const known = String(action).startsWith('ACTION_');
  return {
    reason: String(reason).replace(/^REASON_/, ''),
    action: known ? action.slice('ACTION_'.length) : 'STREAM_LOST',
    message,
    retryMs: milliseconds(retryAfter),
  };
}

function milliseconds(duration) {
  return duration ? Number(duration.seconds) * 1000 + duration.nanos / 1e6 : 0;
}

/** The wait that the server asks for, with up to half of it more, so that clients do not all come at once. */
function jitteredMs({ retryMs }) {
  return retryMs * (1 + Math.random() / 2);
}

/** The retry policy: at once, then after random delays that double, for up to a minute without progress. */
class Retry {
  constructor() {
    this.openedAt = Infinity;
    this.progress();
  }

  /** A caller got a prediction, or began to wait for one: the backoff starts again. */
  progress() {
    this.tries = 0;
    this.idle();
  }

  /** Nothing is pending, so there is no deadline. The backoff goes on, to protect a server that fails at once. */
  idle() {
    this.until = Infinity;
  }

  /** A call is open. When it lives for a while, the backoff starts again. */
  opened() {
    this.openedAt = performance.now();
  }

  /** The delay before the next try; throws StreamLost when no try is left. */
  delay(ending) {
    if (ending.action !== 'RETRY' && ending.action !== 'REOPEN') throw new StreamLost(ending);
    const now = performance.now();
    // The minute starts with the first failure, also after an hour without timesteps.
    this.until = Math.min(this.until, now + GIVE_UP_MS);
    if (now >= this.until) {
      throw new StreamLost({ ...ending, message: `tried for ${GIVE_UP_MS / 1000} s: ${ending.message}` });
    }
    if (now - this.openedAt >= BACKOFF_MAX_MS) this.tries = 0;
    this.openedAt = Infinity;
    const bound = this.tries ? Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** (this.tries - 1)) : 0;
    this.tries += 1;
    return Math.max(bound * Math.random(), jitteredMs(ending));
  }
}

function sleep(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** A line of comma-separated numbers as float32; an empty one is missing. */
function pack(line) {
  const words = line.split(',');
  const values = Buffer.alloc(4 * words.length);
  words.forEach((word, place) => values.writeFloatLE(toNumber(word.trim()), 4 * place));
  return values;
}

function toNumber(word) {
  if (word === '') return NaN;
  return /^[+-]?inf/i.test(word) ? (word.startsWith('-') ? -Infinity : Infinity) : Number(word);
}

/** Writes the number and the packed outputs of a prediction. */
function show({ step, outputs }) {
  process.stdout.write(`${step} ${Buffer.concat(outputs).toString('hex')}\n`);
}

/** Runs a program. The error that ended its stream is printed on one line. */
function run(main) {
  main().then(() => process.exit(0), (error) => {
    process.stderr.write(`${error instanceof StreamLost ? error.message : error.stack}\n`, () => process.exit(1));
  });
}

module.exports = {
  BACKOFF_FIRST_MS, CALL_MS, ENVELOPE_BYTES, Refused, Retry, StreamLost, jitteredMs, connect, endingOf, endingOfTimestep, pack, run,
  show, sleep,
};
