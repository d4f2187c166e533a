// The key of the service: it comes by the fragment of the link and stays in this tab.

const NAME = "metalora-key";

/** Move a key from the address (`#key=...`) into the storage of the tab, so that it is not in the history. */
export function takeKeyFromAddress() {
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (key === null) return;
  setKey(key);
  history.replaceState(null, "", location.pathname + location.search);
}

export const currentKey = () => sessionStorage.getItem(NAME);
export const setKey = (key) => sessionStorage.setItem(NAME, key.trim());
export const removeKey = () => sessionStorage.removeItem(NAME);
