'use strict';
// What the three clients share: the channel, what the end of a call means, and when to try again. See docs/protocol.md.

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');
const protobuf = require('protobufjs'); // proto-loader brings it

const definition = protoLoader.loadSync('tidegate/v1/tidegate.proto', {
  includeDirs: [path.join(__dirname, '../../../protos')],
  longs: Number, // numbers of timesteps up to 2^53
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

const CALL_MS = 10_000; // how long an open, or a single call, may take
const BACKOFF_FIRST_MS = 50;
const BACKOFF_MAX_MS = 5_000;
const GIVE_UP_MS = 60_000;
const ENVELOPE_BYTES = 64; // what a request has beside its values, at most
// What a status without ErrorInfo may be that the network, a proxy or gRPC itself has made: try again.
const BREAKS = new Set(
  ['OK', 'UNAVAILABLE', 'INTERNAL', 'UNKNOWN', 'CANCELLED', 'DEADLINE_EXCEEDED', 'RESOURCE_EXHAUSTED']);

/** Going on would lose or mix up something, or never succeed: a person has to look. */
class StreamLost extends Error {
  constructor({ reason, message }) {
    super(`${reason}: ${message}`);
    this.reason = reason;
  }
}

/** One timestep was dropped; the stream goes on, and the next timestep takes its number. */
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

/** Why a call ended, and what to do about it. A status without ErrorInfo was not made by Tidegate. */
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
  const again = BREAKS.has(grpc.status[code]) && !message.includes('larger than max');
  return { reason: grpc.status[code], action: again ? 'REOPEN' : 'STREAM_LOST', message, retryMs };
}

/** Why a timestep was refused, and what to do about it. What this client does not know is no reason to go on. */
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

/** How long to wait where the server has said so: that long, and up to half of it more, so that not all come at once. */
function askedMs({ retryMs }) {
  return retryMs * (1 + Math.random() / 2);
}

/** When to try again after a break: at once, then after a random wait that doubles, for a minute without progress. */
class Retry {
  constructor() {
    this.openedAt = Infinity;
    this.progress();
  }

  /** A prediction came that somebody waited for, or a new one is waited for: breaks count anew. */
  progress() {
    this.tries = 0;
    this.rest();
  }

  /** Nothing is waited for. The tries stay: a server that falls over at once is not to be run over. */
  rest() {
    this.until = Infinity;
  }

  /** A call is open. When it has lived for a while, its end says nothing of the tries before it. */
  opened() {
    this.openedAt = performance.now();
  }

  /** How long to wait; throws StreamLost when trying again is of no use. */
  after(ending) {
    if (ending.action !== 'RETRY' && ending.action !== 'REOPEN') throw new StreamLost(ending);
    const now = performance.now();
    // The minute runs from the first break on: a stream that was silent for an hour has the whole of it.
    this.until = Math.min(this.until, now + GIVE_UP_MS);
    if (now >= this.until) {
      throw new StreamLost({ ...ending, message: `tried for ${GIVE_UP_MS / 1000} s: ${ending.message}` });
    }
    if (now - this.openedAt >= BACKOFF_MAX_MS) this.tries = 0;
    this.openedAt = Infinity;
    const bound = this.tries ? Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** (this.tries - 1)) : 0;
    this.tries += 1;
    return Math.max(bound * Math.random(), askedMs(ending));
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

/** Runs a program to its end; what ended its stream is told on one line. */
function run(main) {
  main().then(() => process.exit(0), (error) => {
    process.stderr.write(`${error instanceof StreamLost ? error.message : error.stack}\n`, () => process.exit(1));
  });
}

module.exports = {
  BACKOFF_FIRST_MS, CALL_MS, ENVELOPE_BYTES, Refused, Retry, StreamLost, askedMs, connect, endingOf, endingOfTimestep, pack, run,
  show, sleep,
};
