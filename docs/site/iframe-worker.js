// Browsers start no worker on a page from the disk, and the search of the site is one: there it runs in a hidden frame.
// Its script finds `IFrameWorker` in the page around it, and awaits its `importScripts`.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      frame.contentDocument.open(); // a document that is written stays; the first empty one is replaced later by some browsers
      frame.contentDocument.write("<!doctype html><body></body>");
      frame.contentDocument.close();
      this.inner = frame.contentWindow;
      const load = (address) =>
        new Promise((done, failed) => {
          const script = frame.contentDocument.createElement("script");
          script.src = new URL(address, document.baseURI);
          script.onload = done;
          script.onerror = failed;
          frame.contentDocument.body.append(script);
        });
      this.inner.importScripts = (...addresses) =>
        addresses.reduce((before, address) => before.then(() => load(address)), Promise.resolve());
      this.inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      this.started = load(url);
    }

    postMessage(data) {
      this.started.then(() => this.inner.dispatchEvent(new this.inner.MessageEvent("message", { data })));
    }
  };
  window.Worker = window.IFrameWorker;
}
