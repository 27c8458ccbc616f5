'use strict';
// Level 2: a simple stream. Timesteps are numbered and stored before they are answered. One is in flight at a time.
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
    this.openRequest = { streamId, model, durability: 'DURABILITY_SYNC', owner: randomUUID(), resumeFrom: 0 };
    this.fingerprint = '';
    this.bytesMax = 4 << 20; // the largest request; the server may report another limit
    this.call = null;
    this.retry = new Retry();
  }

  async open() {
    await this.request(null, 'opened');
  }

  /** The prediction for the next timestep. Raises Refused when it was not applied, StreamLost when a person must decide. */
  async step(values) {
    if (values.length > this.bytesMax - ENVELOPE_BYTES) {
      throw new Refused({ reason: 'TOO_LARGE', message: `${values.length} bytes; the server reads ${this.bytesMax}` });
    }
    const { prediction } = await this.request({ timestep: { step: this.nextStep, values } }, 'prediction');
    if (!prediction.outputs.length) {
      throw new StreamLost({ reason: 'ANSWER_LOST', message: `the server no longer has the answer to timestep ${this.nextStep}` });
    }
    this.nextStep += 1;
    this.openRequest.resumeFrom = this.nextStep; // earlier timesteps are stored
    return prediction;
  }

  /** Closes the stream. It can be opened again. */
  async close() {
    await this.request({ close: {} }, 'closed');
    const ended = new Promise((resolve) => this.call.once('status', resolve));
    this.call.end(); // half-close
    await ended;
  }

  /** The response to a request, which is sent again on a new call after a disconnect. Without a request it only opens the stream. */
  async request(request, kind) {
    this.retry.progress();
    for (;;) {
      let response = this.call ? null : await this.openCall();
      if (request && !response?.ending) response = await this.ask(request, kind);
      if (response[kind]) return response;
      const ending = response.ending ?? endingOfTimestep(response.error);
      if (ending.action === 'DROP') throw new Refused(ending);
      if (response.ending || ending.action !== 'RETRY') this.endCall();
      await sleep(this.retry.delay(ending));
    }
  }

  /** Opens the stream on a new call. Sends nothing else before the answer. */
  async openCall() {
    const call = this.client.predict();
    this.call = call;
    this.ended = null;
    call.on('error', () => {}); // reported by the status event too
    call.on('data', (response) => this.onResponse(call, response));
    call.on('status', (status) => this.onResponse(call, { ending: endingOf(status) }));
    const timer = setTimeout(() => call.cancel(), CALL_MS);
    const response = await this.ask({ open: this.openRequest }, 'opened');
    clearTimeout(timer);
    if (!response.opened) return response;
    const { model, nextStep, streamId, messageBytesMax } = response.opened;
    if (this.fingerprint && this.fingerprint !== model.fingerprint) {
      this.endCall();
      throw new StreamLost({ reason: 'MODEL_MISMATCH', message: 'the weights differ from those under which the stream began' });
    }
    if (!this.fingerprint) {
      this.nextStep = nextStep;
      this.fingerprint = model.fingerprint;
      Object.assign(this.openRequest, { streamId, model: model.name, version: model.version, resumeFrom: nextStep });
    }
    this.bytesMax = messageBytesMax || this.bytesMax;
    this.retry.opened();
    return response;
  }

  /** Sends a request; resolves to its answer, or to how the call ended. This level ignores notifications. */
  ask(request, kind) {
    return new Promise((resolve) => {
      this.onAnswer = (response) => {
        if (response[kind] || response.error || response.ending) resolve(response);
      };
      if (this.ended) resolve(this.ended);
      else this.call.write(request);
    });
  }

  onResponse(call, response) {
    if (call !== this.call) return;
    if (response.ending) this.ended = response;
    this.onAnswer(response);
  }

  endCall() {
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
