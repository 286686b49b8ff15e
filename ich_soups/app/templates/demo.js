() => {
  // on a phone the answer is further down, and there a moment after it was sent
  const answered = () => document.querySelector('.answer, .sorry')
  const go = n => answered() ? document.querySelector('#answer').scrollIntoView() : n && setTimeout(go, 100, n-1)
  if (innerWidth < 700) setTimeout(go, 100, 50)
}
