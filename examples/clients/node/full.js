'use strict';
// Level 3: full. Many timesteps in flight, stored in the background, and each prediction delivered once and in order.
//
// node full.js ADDRESS STREAM_ID [MODEL]
//
// The rules are those of docs/protocol.md.

const { randomUUID } = require('node:crypto');
const readline = require('node:readline');
const {
  BACKOFF_FIRST_MS, CALL_MS, ENVELOPE_BYTES, Refused, Retry, StreamLost, jitteredMs, connect, endingOf, endingOfTimestep, pack, run,
  show, sleep,
} = require('./common');

const KEPT_MAX = 1024;
const RETRY_MS = 60_000; // how long a timestep is sent again while the server has no room for it
const ANSWER_LOST = { reason: 'ANSWER_LOST', message: 'the timestep was applied, but its prediction is lost' };

class FullStream {
  constructor(address, streamId, model = '') {
    this.client = connect(address);
    this.openRequest = { streamId, model, owner: randomUUID(), resumeFrom: 0, keptMax: KEPT_MAX };
    this.model = null;
    this.kept = []; // answered, not stored: numbers up to `answered`
    this.pending = []; // not answered: numbers from `answered` + 1
    this.inFlight = []; // [number, entry]; entry is null where the answer is to be ignored
    this.answered = 0;
    this.durable = 0;
    this.applied = 0; // the last timestep that the server is known to have applied
    this.cursor = 1; // number of the next timestep to send
    this.window = 1; // how many may be in flight
    this.bytesMax = 4 << 20; // the largest request; the server may report another limit
    this.notBefore = 0; // when to send again after a refusal
    this.closing = false; // the user closes
    this.call = null; // null when nothing may be sent
    this.waiters = []; // each wakes a caller that waits for room
    this.lost = null;
    this.retry = new Retry();
    this.ended = this.run();
    this.ended.catch(() => {}); // `send` and `close` throw it
  }

  // For users ---------------------------------------------------------------------------------------------------------

  /** Sends a timestep once there is room (rule 4). `delivered` gets its prediction. */
  async send(values) {
    while (!this.lost && (!this.model || this.kept.length + this.pending.length >= KEPT_MAX)) {
      await new Promise((resolve) => this.waiters.push(resolve));
    }
    if (this.lost) throw this.lost;
    const entry = { values, outputs: null, until: 0 }; // the delivered outputs; the deadline after a refusal
    entry.delivered = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    entry.delivered.catch(() => {}); // no warning when the caller never looks
    if (values.length > this.bytesMax - ENVELOPE_BYTES) {
      entry.reject(new Refused({ reason: 'TOO_LARGE', message: `${values.length} bytes; the server reads ${this.bytesMax}` }));
    } else {
      this.pending.push(entry);
      this.sendReady();
    }
    return { delivered: entry.delivered };
  }

  /** Closes the stream once everything is answered and stored. Throws the error that ended it before. */
  async close() {
    this.closing = true;
    this.sendReady();
    await this.ended;
  }

  // The stream, over many calls ----------------------------------------------------------------------------------------

  async run() {
    try {
      for (;;) {
        const ending = await this.runCall();
        if (ending.closed) return;
        await sleep(this.retry.delay(ending));
      }
    } catch (error) {
      this.lost = error;
      this.notifyRoom();
      for (const entry of this.pending) entry.reject(error);
      throw error;
    }
  }

  /** Runs one call from its open to its end. Resolves to why it ended, or to `closed`. */
  runCall() {
    return new Promise((resolve, reject) => {
      const call = this.client.predict();
      let ended = false; // later events of the call are ignored
      this.deadlineTimer = setTimeout(() => call.cancel(), CALL_MS);
      this.finish = (ending) => { // an ending, or an error
        if (ended) return;
        ended = true;
        clearTimeout(this.deadlineTimer);
        clearTimeout(this.timer);
        this.call = null;
        call.cancel();
        if (ending instanceof Error) reject(ending);
        else resolve(ending);
      };
      const { finish } = this;
      call.on('error', () => {}); // reported by the status event too
      call.on('status', (status) => finish(endingOf(status)));
      call.on('data', (response) => {
        if (ended) return;
        try {
          this.onResponse(call, response);
          this.sendReady();
          this.checkIdle();
        } catch (error) {
          finish(error);
        }
      });
      call.write({ open: this.openRequest });
    });
  }

  /** Sends timesteps from the cursor on, within the window (rule 4). */
  sendReady() {
    if (!this.call) return;
    const wait = this.notBefore - performance.now();
    if (wait > 0) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.sendReady(), wait + 1);
      return;
    }
    const first = this.answered - this.kept.length + 1;
    this.cursor = Math.max(this.cursor, first);
    while (this.cursor - first < this.kept.length + this.pending.length && this.inFlight.length < this.window) {
      const place = this.cursor - first;
      const entry = place < this.kept.length ? this.kept[place] : this.pending[place - this.kept.length];
      this.inFlight.push([this.cursor, entry]);
      this.call.write({ timestep: { step: this.cursor, values: entry.values } });
      this.cursor += 1;
    }
    if (this.closing && !this.inFlight.length && !this.pending.length && this.cursor > this.answered) {
      this.call.write({ close: {} }); // rule 8
      this.call.end(); // half-close
      this.call = null;
    }
  }

  // Responses ---------------------------------------------------------------------------------------------------------

  /** Handles a response. Unknown kinds are ignored. */
  onResponse(call, { opened, prediction, error, durable, move, closed }) {
    if (opened) this.onOpened(call, opened);
    if (prediction) this.onPrediction(prediction);
    if (error) this.onError(error);
    if (durable) this.onDurable(durable.durableStep);
    if (move) { // half-close, and read to the end
      call.end();
      this.call = null;
      clearTimeout(this.deadlineTimer);
      this.deadlineTimer = setTimeout(() => call.cancel(), CALL_MS);
    }
    if (closed) {
      this.onDurable(closed.durableStep);
      const less = { reason: 'STORE_UNAVAILABLE', action: 'REOPEN', message: 'not all was stored when it was closed', retryMs: 0 };
      this.finish(this.durable >= this.answered ? { closed: true } : less);
    }
  }

  /** Rule 2. */
  onOpened(call, opened) {
    const { model } = opened;
    if (!this.model) {
      this.answered = opened.nextStep - 1;
      Object.assign(this.openRequest, { streamId: opened.streamId, model: model.name, version: model.version });
    } else if (this.model.fingerprint !== model.fingerprint) {
      throw new StreamLost({ reason: 'MODEL_MISMATCH', message: 'the weights differ from those under which the stream began' });
    }
    clearTimeout(this.deadlineTimer);
    this.call = call;
    this.model = model;
    this.inFlight = [];
    this.applied = opened.nextStep - 1;
    this.cursor = Math.min(opened.nextStep, this.answered + 1);
    this.window = Math.max(1, opened.answersRemembered);
    this.bytesMax = opened.messageBytesMax || this.bytesMax;
    this.notBefore = 0;
    this.onDurable(opened.durableStep);
    this.notifyRoom();
    this.retry.opened();
  }

  /** Rule 5. */
  onPrediction({ step, outputs, durableStep }) {
    const entry = this.matchAnswer(step);
    this.applied = Math.max(this.applied, step);
    if (entry && step > this.answered) {
      if (outputs.length) {
        entry.outputs = Buffer.concat(outputs);
        entry.resolve({ step, outputs });
      } else {
        entry.reject(new Refused(ANSWER_LOST));
      }
      this.settleNext(entry);
    } else if (entry?.outputs && outputs.length && this.model.batchInvariant && !entry.outputs.equals(Buffer.concat(outputs))) {
      throw new StreamLost({ reason: 'DIVERGED', message: `timestep ${step} got a different answer than the delivered one` });
    }
    this.onDurable(durableStep);
  }

  /** Rule 7. */
  onError(error) {
    const { step, nextStep } = error;
    const entry = this.matchAnswer(step);
    const ending = endingOfTimestep(error);
    if (!entry) return;
    if (ending.action === 'REOPEN') {
      this.finish(ending);
      return;
    }
    if (ending.action !== 'RETRY' && ending.action !== 'DROP') throw new StreamLost(ending);
    this.applied = Math.max(this.applied, nextStep - 1);
    this.inFlight = this.inFlight.map(([number]) => [number, null]);
    this.cursor = step;
    entry.until ||= performance.now() + RETRY_MS;
    if (ending.action === 'RETRY' && performance.now() < entry.until) {
      this.notBefore = performance.now() + Math.max(jitteredMs(ending), BACKOFF_FIRST_MS);
    } else if (step <= this.answered) {
      throw new StreamLost({ reason: 'DIVERGED', message: `timestep ${step} was delivered, but is refused now` });
    } else if (step <= this.applied) {
      this.cursor = step + 1;
      entry.reject(new Refused(ANSWER_LOST));
      this.settleNext(entry);
    } else {
      this.pending.shift(); // rule 3: later timesteps move up
      entry.reject(new Refused(ending));
      this.notifyRoom();
      this.retry.progress();
    }
  }

  /** The timestep that an answer belongs to. Answers come in the order of the requests. */
  matchAnswer(step) {
    const [number, entry] = this.inFlight.shift() ?? [];
    if (number !== step) throw new StreamLost({ reason: 'WRONG_ORDER', message: `timestep ${step} was answered out of order` });
    return entry;
  }

  /** Moves the first pending timestep to the kept ones, until it is stored, and completes its future. */
  settleNext(entry) {
    this.pending.shift();
    this.answered += 1;
    this.kept.push(entry);
    this.retry.progress();
  }

  /** Clears the retry deadline when nothing is pending or being replayed. */
  checkIdle() {
    const waiting = this.closing || this.pending.length || this.inFlight.length || this.cursor <= this.answered;
    if (!waiting) this.retry.idle();
  }

  /** Wakes callers that wait for room. */
  notifyRoom() {
    for (const resolve of this.waiters.splice(0)) resolve();
  }

  /** Drops stored timesteps: they are never sent again. */
  onDurable(step) {
    this.durable = Math.max(this.durable, step);
    const stored = Math.min(this.kept.length, Math.max(0, this.durable - (this.answered - this.kept.length)));
    this.kept.splice(0, stored);
    if (stored) this.notifyRoom();
    this.openRequest.resumeFrom = this.answered - this.kept.length + 1; // rule 1
  }
}

async function main() {
  const stream = new FullStream(...process.argv.slice(2));
  await Promise.all([stream.ended, sendAll(stream)]); // a lost stream does not wait for stdin
}

async function sendAll(stream) {
  let shown = Promise.resolve();
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { delivered } = await stream.send(pack(line));
    shown = shown.then(() => delivered).then(show, (error) => {
      if (!(error instanceof Refused)) throw error;
      console.log('refused', error.reason);
    });
    shown.catch(() => {}); // thrown below
  }
  await shown;
  await stream.close();
}

module.exports = { FullStream };
if (require.main === module) run(main);
