'use strict';
// Level 2: a simple stream. Timesteps are numbered, stored before they are answered, and one is in flight.
//
// node simple.js ADDRESS STREAM_ID [MODEL]

const { randomUUID } = require('node:crypto');
const readline = require('node:readline');
const {
  CALL_MS, ENVELOPE_BYTES, Refused, Retry, StreamLost, connect, endingOf, endingOfTimestep, pack, run, show, sleep,
} = require('./common');

/** A stream; `nextStep` is the number of the next timestep, once `open` is done. */
class SimpleStream {
  constructor(address, streamId, model = '') {
    this.client = connect(address);
    this.ask = { streamId, model, durability: 'DURABILITY_SYNC', owner: randomUUID(), resumeFrom: 0 };
    this.fingerprint = '';
    this.bytesMax = 4 << 20; // the largest request that the server reads; it may say otherwise
    this.call = null;
    this.retry = new Retry();
  }

  async open() {
    await this.request(null, 'opened');
  }

  /** The prediction for the next timestep; Refused when it was not applied, StreamLost when somebody has to look. */
  async step(values) {
    if (values.length > this.bytesMax - ENVELOPE_BYTES) {
      throw new Refused({ reason: 'TOO_LARGE', message: `${values.length} bytes; the server reads ${this.bytesMax}` });
    }
    const { prediction } = await this.request({ timestep: { step: this.nextStep, values } }, 'prediction');
    if (!prediction.outputs.length) {
      throw new StreamLost({ reason: 'ANSWER_LOST', message: `the answer to timestep ${this.nextStep} is forgotten` });
    }
    this.nextStep += 1;
    this.ask.resumeFrom = this.nextStep; // all before is stored
    return prediction;
  }

  /** Ends the stream; it can be opened again. */
  async close() {
    await this.request({ close: {} }, 'closed');
    const ended = new Promise((resolve) => this.call.once('status', resolve));
    this.call.end(); // half-close: nothing follows
    await ended;
  }

  /** The response to a request, which is sent again on a new call after each break; without one, only opens. */
  async request(request, wanted) {
    this.retry.progress();
    for (;;) {
      let response = this.call ? null : await this.begin();
      if (request && !response?.ending) response = await this.answer(request, wanted);
      if (response[wanted]) return response;
      const ending = response.ending ?? endingOfTimestep(response.error);
      if (ending.action === 'DROP') throw new Refused(ending);
      if (response.ending || ending.action !== 'RETRY') this.leave();
      await sleep(this.retry.after(ending));
    }
  }

  /** Opens the stream on a new call; nothing else is sent before it is open. */
  async begin() {
    const call = this.client.predict();
    this.call = call;
    this.over = null;
    call.on('error', () => {}); // its status says the same
    call.on('data', (response) => this.hear(call, response));
    call.on('status', (status) => this.hear(call, { ending: endingOf(status) }));
    const limit = setTimeout(() => call.cancel(), CALL_MS);
    const response = await this.answer({ open: this.ask }, 'opened');
    clearTimeout(limit);
    if (!response.opened) return response;
    const { model, nextStep, streamId, messageBytesMax } = response.opened;
    if (this.fingerprint && this.fingerprint !== model.fingerprint) {
      this.leave();
      throw new StreamLost({ reason: 'MODEL_MISMATCH', message: 'the server has other weights than the stream began with' });
    }
    if (!this.fingerprint) {
      this.nextStep = nextStep;
      this.fingerprint = model.fingerprint;
      Object.assign(this.ask, { streamId, model: model.name, version: model.version, resumeFrom: nextStep });
    }
    this.bytesMax = messageBytesMax || this.bytesMax;
    this.retry.opened();
    return response;
  }

  /** Sends a request; gives its response, or how the call ended. What is told beside that is not for this level. */
  answer(request, wanted) {
    return new Promise((resolve) => {
      this.waiting = (response) => {
        if (response[wanted] || response.error || response.ending) resolve(response);
      };
      if (this.over) resolve(this.over);
      else this.call.write(request);
    });
  }

  hear(call, response) {
    if (call !== this.call) return;
    if (response.ending) this.over = response;
    this.waiting(response);
  }

  leave() {
    this.call.cancel();
    this.call = null;
  }
}

async function main() {
  const stream = new SimpleStream(...process.argv.slice(2));
  await stream.open();
  for await (const line of readline.createInterface({ input: process.stdin })) {
    try {
      show(await stream.step(pack(line)));
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      console.log('refused', error.reason);
    }
  }
  await stream.close();
}

module.exports = { SimpleStream };
if (require.main === module) run(main);
