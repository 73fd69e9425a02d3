const fs = require('fs');

const greeting = `Greetings to ${process.env.INPUT_WHO} from node ${process.version}.`;
fs.appendFileSync(process.env.GITHUB_OUTPUT, `greeting=${greeting}\n`);
