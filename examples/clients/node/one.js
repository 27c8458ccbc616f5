'use strict';
// Level 1: one call a timestep. A timestep is sent with its number until it is answered. OK means that it was applied and stored, once.
//
// node one.js ADDRESS STREAM_ID [MODEL] [--step N]

const readline = require('node:readline');
const { parseArgs } = require('node:util');
const { CALL_MS, Refused, Retry, StreamLost, connect, endingOf, pack, run, show, sleep } = require('./common');

/** Sends single timesteps of one stream. The caller keeps the number of the next one, together with the data. */
class OneCall {
  constructor(address, streamId, model = '') {
    this.client = connect(address);
    this.streamId = streamId;
    this.model = model;
    this.retry = new Retry();
  }

  /** The prediction for a timestep. Raises Refused when it was not applied, StreamLost when a person must decide. */
  async predict(step, values) {
    const request = { streamId: this.streamId, model: this.model, step, values };
    this.retry.progress();
    for (;;) {
      const { error, response } = await this.call(request);
      if (!error) {
        if (response.prediction.outputs.length) return response.prediction;
        throw new StreamLost({ reason: 'ANSWER_LOST', message: `the server no longer has the answer to timestep ${step}` });
      }
      const ending = endingOf(error);
      if (ending.action === 'DROP') throw new Refused(ending);
      await sleep(this.retry.delay(ending));
    }
  }

  call(request) {
    const deadline = Date.now() + CALL_MS;
    return new Promise((resolve) => {
      this.client.predictOne(request, { deadline }, (error, response) => resolve({ error, response }));
    });
  }
}

async function main() {
  const { values: options, positionals } = parseArgs({
    options: { step: { type: 'string', default: '1' } }, allowPositionals: true,
  });
  const client = new OneCall(...positionals);
  let step = Number(options.step);
  for await (const line of readline.createInterface({ input: process.stdin })) {
    try {
      show(await client.predict(step, pack(line)));
      step += 1;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      console.log('refused', error.reason); // the next timestep takes its number
    }
  }
}

module.exports = { OneCall };
if (require.main === module) run(main);
