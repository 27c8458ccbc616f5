'use strict';
// Level 3: full. Many timesteps in flight, stored in the background, and each prediction delivered once and in order.
//
// node full.js ADDRESS STREAM_ID [MODEL]
//
// The rules are those of docs/protocol.md.

const { randomUUID } = require('node:crypto');
const readline = require('node:readline');
const {
  BACKOFF_FIRST_MS, CALL_MS, ENVELOPE_BYTES, Refused, Retry, StreamLost, askedMs, connect, endingOf, endingOfTimestep, pack, run,
  show, sleep,
} = require('./common');

const KEPT_MAX = 1024;
const RETRY_MS = 60_000; // for how long a timestep is sent again that the server has no room for
const ANSWER_LOST = { reason: 'ANSWER_LOST', message: 'the timestep was applied, but its prediction is gone' };

class FullStream {
  constructor(address, streamId, model = '') {
    this.client = connect(address);
    this.ask = { streamId, model, owner: randomUUID(), resumeFrom: 0, keptMax: KEPT_MAX };
    this.model = null;
    this.kept = []; // answered and not stored: numbers up to `answered`
    this.pending = []; // not answered: numbers from `answered` + 1
    this.inFlight = []; // [number, entry]; null stands for an entry whose answer is to be ignored
    this.answered = 0;
    this.durable = 0;
    this.applied = 0; // the last timestep that the server is known to have applied
    this.cursor = 1; // number of the next timestep to send
    this.window = 1; // how many may be in flight
    this.bytesMax = 4 << 20; // the largest request that the server reads; it may say otherwise
    this.notBefore = 0; // when to send on after a refusal
    this.closing = false; // the user closes
    this.call = null; // what to write to; null: nothing is to be sent now
    this.waiters = []; // each wakes somebody who waits for room
    this.lost = null;
    this.retry = new Retry();
    this.ended = this.run();
    this.ended.catch(() => {}); // it is raised by `send` and `close`
  }

  // What the user calls ------------------------------------------------------------------------------------------------

  /** Sends a timestep, once there is room for it (rule 4); its prediction comes through `delivered`. */
  async send(values) {
    while (!this.lost && (!this.model || this.kept.length + this.pending.length >= KEPT_MAX)) {
      await new Promise((resolve) => this.waiters.push(resolve));
    }
    if (this.lost) throw this.lost;
    const entry = { values, outputs: null, until: 0 }; // the outputs that were delivered; when to give up on it
    entry.delivered = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    entry.delivered.catch(() => {}); // whoever waits for it is told
    if (values.length > this.bytesMax - ENVELOPE_BYTES) {
      entry.reject(new Refused({ reason: 'TOO_LARGE', message: `${values.length} bytes; the server reads ${this.bytesMax}` }));
    } else {
      this.pending.push(entry);
      this.pump();
    }
    return { delivered: entry.delivered };
  }

  /** Ends the stream when all is answered and stored; throws what ended it before that. */
  async close() {
    this.closing = true;
    this.pump();
    await this.ended;
  }

  // The stream, over many calls ----------------------------------------------------------------------------------------

  async run() {
    try {
      for (;;) {
        const ending = await this.speak();
        if (ending.closed) return;
        await sleep(this.retry.after(ending));
      }
    } catch (error) {
      this.lost = error;
      this.wake();
      for (const entry of this.pending) entry.reject(error);
      throw error;
    }
  }

  /** One call, from its open to its end; gives why another one is to follow, or that the stream is closed. */
  speak() {
    return new Promise((resolve, reject) => {
      const call = this.client.predict();
      let over = false; // what a call says after that is of no more use
      this.limit = setTimeout(() => call.cancel(), CALL_MS);
      this.finish = (ending) => { // an ending, or an error
        if (over) return;
        over = true;
        clearTimeout(this.limit);
        clearTimeout(this.timer);
        this.call = null;
        call.cancel();
        if (ending instanceof Error) reject(ending);
        else resolve(ending);
      };
      const { finish } = this;
      call.on('error', () => {}); // its status says the same
      call.on('status', (status) => finish(endingOf(status)));
      call.on('data', (response) => {
        if (over) return;
        try {
          this.take(call, response);
          this.pump();
          this.rest();
        } catch (error) {
          finish(error);
        }
      });
      call.write({ open: this.ask });
    });
  }

  /** Sends from the cursor on, no further than the window (rule 4). */
  pump() {
    if (!this.call) return;
    const wait = this.notBefore - performance.now();
    if (wait > 0) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.pump(), wait + 1);
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
      this.call.end(); // half-close: nothing follows
      this.call = null;
    }
  }

  // What the server says -----------------------------------------------------------------------------------------------

  /** Takes in a response. Kinds that are not known mean nothing. */
  take(call, { opened, prediction, error, durable, move, closed }) {
    if (opened) this.takeOpened(call, opened);
    if (prediction) this.predicted(prediction);
    if (error) this.refused(error);
    if (durable) this.store(durable.durableStep);
    if (move) { // send nothing more, and read to the end
      call.end();
      this.call = null;
      clearTimeout(this.limit);
      this.limit = setTimeout(() => call.cancel(), CALL_MS);
    }
    if (closed) {
      this.store(closed.durableStep);
      const less = { reason: 'STORE_UNAVAILABLE', action: 'REOPEN', message: 'not all was stored when it was closed', retryMs: 0 };
      this.finish(this.durable >= this.answered ? { closed: true } : less);
    }
  }

  /** Rule 2. */
  takeOpened(call, opened) {
    const { model } = opened;
    if (!this.model) {
      this.answered = opened.nextStep - 1;
      Object.assign(this.ask, { streamId: opened.streamId, model: model.name, version: model.version });
    } else if (this.model.fingerprint !== model.fingerprint) {
      throw new StreamLost({ reason: 'MODEL_MISMATCH', message: 'the server has other weights than the stream began with' });
    }
    clearTimeout(this.limit);
    this.call = call;
    this.model = model;
    this.inFlight = [];
    this.applied = opened.nextStep - 1;
    this.cursor = Math.min(opened.nextStep, this.answered + 1);
    this.window = Math.max(1, opened.answersRemembered);
    this.bytesMax = opened.messageBytesMax || this.bytesMax;
    this.notBefore = 0;
    this.store(opened.durableStep);
    this.wake();
    this.retry.opened();
  }

  /** Rule 5. */
  predicted({ step, outputs, durableStep }) {
    const entry = this.due(step);
    this.applied = Math.max(this.applied, step);
    if (entry && step > this.answered) {
      if (outputs.length) {
        entry.outputs = Buffer.concat(outputs);
        entry.resolve({ step, outputs });
      } else {
        entry.reject(new Refused(ANSWER_LOST));
      }
      this.settle(entry);
    } else if (entry?.outputs && outputs.length && this.model.batchInvariant && !entry.outputs.equals(Buffer.concat(outputs))) {
      throw new StreamLost({ reason: 'DIVERGED', message: `timestep ${step} is answered otherwise than it was delivered` });
    }
    this.store(durableStep);
  }

  /** Rule 7. */
  refused(error) {
    const { step, nextStep } = error;
    const entry = this.due(step);
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
      this.notBefore = performance.now() + Math.max(askedMs(ending), BACKOFF_FIRST_MS);
    } else if (step <= this.answered) {
      throw new StreamLost({ reason: 'DIVERGED', message: `timestep ${step} was delivered and is refused now` });
    } else if (step <= this.applied) {
      this.cursor = step + 1;
      entry.reject(new Refused(ANSWER_LOST));
      this.settle(entry);
    } else {
      this.pending.shift(); // rule 3: those behind it move up
      entry.reject(new Refused(ending));
      this.wake();
      this.retry.progress();
    }
  }

  /** The timestep that an answer is for; answers come in the order of the requests. */
  due(step) {
    const [number, entry] = this.inFlight.shift() ?? [];
    if (number !== step) throw new StreamLost({ reason: 'WRONG_ORDER', message: `timestep ${step} was not due` });
    return entry;
  }

  /** The first pending timestep is applied, and its caller told; it is kept until it is stored. */
  settle(entry) {
    this.pending.shift();
    this.answered += 1;
    this.kept.push(entry);
    this.retry.progress();
  }

  /** When nothing is waited for, neither by the user nor to be sent again, the minute begins anew. */
  rest() {
    const waiting = this.closing || this.pending.length || this.inFlight.length || this.cursor <= this.answered;
    if (!waiting) this.retry.rest();
  }

  /** Has those go on who wait for room. */
  wake() {
    for (const resolve of this.waiters.splice(0)) resolve();
  }

  /** Drops what is stored: the client will never have to send it again. */
  store(step) {
    this.durable = Math.max(this.durable, step);
    const stored = Math.min(this.kept.length, Math.max(0, this.durable - (this.answered - this.kept.length)));
    this.kept.splice(0, stored);
    if (stored) this.wake();
    this.ask.resumeFrom = this.answered - this.kept.length + 1; // rule 1
  }
}

async function main() {
  const stream = new FullStream(...process.argv.slice(2));
  await Promise.all([stream.ended, sendAll(stream)]); // a stream that is lost does not wait for stdin
}

async function sendAll(stream) {
  let shown = Promise.resolve();
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { delivered } = await stream.send(pack(line));
    shown = shown.then(() => delivered).then(show, (error) => {
      if (!(error instanceof Refused)) throw error;
      console.log('refused', error.reason);
    });
    shown.catch(() => {}); // it is raised below
  }
  await shown;
  await stream.close();
}

module.exports = { FullStream };
if (require.main === module) run(main);
